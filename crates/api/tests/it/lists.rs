//! Lists in pages, and one tunnel by its name.

use serde_json::{Value, json};
use store::MemoryStore;
use tunnel_model::Rules;

use crate::world::*;

async fn world() -> World {
    let mut rules = Rules::new();
    rules.creates.limit = 1000;
    World::with(std::sync::Arc::new(MemoryStore::new()), rules).await
}

/// The records of a list, and the cursor of its next page.
async fn page(world: &World, list: &str, query: &str) -> (Vec<String>, Option<String>) {
    let answer = world.admin("GET", &format!("/api/v1/{list}?{query}"), Value::Null).await.expect(200);
    let (records, next) = match list {
        "identities" => (&answer.body, answer.headers.get("x-next-cursor").map(|next| next.to_str().expect("text"))),
        list => (&answer.body[list.replace('-', "_")], answer.body["next_cursor"].as_str()),
    };
    let ids = records.as_array().expect("a list").iter().map(|record| text(&record["id"])).collect();
    (ids, next.map(str::to_owned))
}

#[tokio::test]
async fn pages_together_are_the_list() {
    let world = world().await;
    for number in 0..5 {
        world.identity(&format!("agent-{number}"), "edge").await;
        world.clock.advance(SECOND);
    }
    for list in ["tunnels", "identities", "api-keys"] {
        let (all, next) = page(&world, list, "").await;
        assert_eq!((all.len(), next), (if list == "api-keys" { 6 } else { 5 }, None), "{list}");
        for limit in [1, 2, 5, 6, 1000] {
            let (mut found, mut query) = (Vec::new(), format!("limit={limit}"));
            loop {
                let (ids, next) = page(&world, list, &query).await;
                assert!(ids.len() <= limit && !ids.is_empty(), "{list}: no empty page at the end");
                found.extend(ids);
                match next {
                    Some(next) => query = format!("limit={limit}&cursor={next}"),
                    None => break,
                }
            }
            assert_eq!(found, all, "{list} by {limit}");
        }
        let (_, next) = page(&world, list, "limit=2").await;
        let (rest, _) = page(&world, list, &format!("cursor={}", next.expect("more"))).await;
        assert_eq!(rest, all[2..], "{list}: without a limit all that is left");
    }
}

#[tokio::test]
async fn a_scoped_key_lists_its_own_in_pages_too() {
    let world = world().await;
    world.identity("her-agent", "edge").await;
    let (_, tunnel, key) = world.identity("my-agent", "edge").await;
    let listed = world.call(&key, "GET", "/api/v1/tunnels?limit=1", Value::Null).await.expect(200).body;
    assert_eq!(listed["tunnels"].as_array().map(Vec::len), Some(1));
    assert_eq!((&listed["tunnels"][0]["id"], listed.get("next_cursor")), (&json!(tunnel), None));
}

#[tokio::test]
async fn a_tunnel_is_found_by_its_name() {
    let world = world().await;
    let (_, tunnel, key) = world.identity("my-agent", "edge").await;
    let lonely = world.tunnel("lonely", "edge").await;
    let found = async |key: &str, name: &str| {
        let path = format!("/api/v1/tunnels/?tunnel_name={name}");
        let body = world.call(key, "GET", &path, Value::Null).await.expect(200).body;
        assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "the shape of every list");
        body["tunnels"].as_array().expect("a list").iter().map(|tunnel| text(&tunnel["id"])).collect::<Vec<_>>()
    };
    assert_eq!(found(&world.admin, "my-agent").await, [tunnel.as_str()]);
    assert_eq!(found(&key, "my-agent").await, [tunnel]);
    assert_eq!(found(&world.admin, "lonely").await, [lonely.as_str()]);
    for (key, name) in [(&key, "lonely"), (&world.stranger, "lonely"), (&world.admin, "nobody")] {
        assert!(found(key, name).await.is_empty(), "{name}");
    }
    // As in the list: until its deadline it is there, and then it is not.
    world.admin("DELETE", &format!("/api/v1/tunnels/{lonely}"), Value::Null).await.expect(200);
    assert_eq!(found(&world.admin, "lonely").await.len(), 1);
    world.clock.advance(DAY);
    assert!(found(&world.admin, "lonely").await.is_empty());
}

#[tokio::test]
async fn a_query_that_breaks_its_rule_is_told() {
    let world = world().await;
    let cursor = "0".repeat(48);
    for (list, query) in [
        ("tunnels", "limit=0"),
        ("tunnels", "limit=1001"),
        ("tunnels", "limit=-1"),
        ("tunnels", "limit="),
        ("tunnels", "limit=1&limit=2"),
        ("identities", "limit=ten"),
        ("api-keys", "limit=4294967297"),
        ("api-keys", "cursor="),
        ("identities", "cursor=%2b00"),
        ("tunnels", &format!("cursor={}é", &cursor[2..])),
        ("tunnels", &format!("cursor=%2b{}", &cursor[1..])),
        ("tunnels", "tunnel_name=-"),
        ("tunnels", "tunnel_name=a-name&tunnel_name=b-name"),
    ] {
        let uri = format!("/api/v1/{list}?{}", query.replace('é', "%C3%A9"));
        world.admin("GET", &uri, Value::Null).await.problem(422, "invalid-field");
    }
    // What is not known is not looked at, as before.
    world.admin("GET", "/api/v1/tunnels?order=up", Value::Null).await.expect(200);
    world.admin("GET", &format!("/api/v1/tunnels?cursor={cursor}"), Value::Null).await.expect(200);
}
