//! A clock that was far ahead for a while.

use serde_json::{Value, json};

use crate::world::*;

#[tokio::test]
async fn a_clock_that_was_ahead_makes_nobody_wait_longer_than_the_window() {
    let world = World::new().await;

    world.clock.advance(400 * DAY);
    let mut ids = Vec::new();
    for number in 0..10 {
        ids.push(world.tunnel(&format!("agent-{number}"), "passthrough").await);
    }
    for _ in 0..10 {
        world.sign(&world.admin, &ids[0], &csr_for("agent-0")).await.expect(200);
    }
    let gone = format!("/api/v1/tunnels/{}", ids[1]);
    world.admin("DELETE", &gone, Value::Null).await.expect(200);

    world.clock.advance(-400 * DAY);
    let create = || world.admin("POST", "/api/v1/tunnels", json!({"tunnel_name": "another"}));
    let sign = async || world.sign(&world.admin, &ids[0], &csr_for("agent-0")).await;
    assert_eq!(create().await.expect(429).retry_after(), DAY / SECOND);
    assert_eq!(sign().await.expect(429).retry_after(), DAY / SECOND);
    world.app.sweep().await.expect("a store");
    let deadline = text(&world.admin("GET", &gone, Value::Null).await.expect(200).body["restore_deadline_at"]);
    assert_eq!(deadline.parse::<jiff::Timestamp>().expect("a time").as_microsecond(), NOW + DAY);
    tokio::task::yield_now().await;
    let used = text(&world.admin("GET", "/api/whoami", Value::Null).await.expect(200).body["last_used_at"]);
    assert!(used.parse::<jiff::Timestamp>().expect("a time").as_microsecond() <= NOW, "{used}");

    world.clock.advance(DAY);
    create().await.expect(201);
    sign().await.expect(200);
    assert_eq!(world.app.sweep().await.expect("a store"), 1);
}
