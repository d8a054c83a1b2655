//! The record of everything that was issued.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::world::*;

/// What the list has for a query.
async fn listed(world: &World, key: &str, query: &str) -> Vec<Value> {
    let answer = world.call(key, "GET", &format!("/api/v1/certificates?{query}"), Value::Null).await.expect(200);
    answer.body["certificates"].as_array().expect("a list").clone()
}

#[tokio::test]
async fn a_certificate_is_on_record_with_all_that_is_known_of_it() {
    let world = World::new().await;
    let (_, tunnel, key) = world.identity("my-agent", "passthrough").await;
    let signed = world.sign(&key, &tunnel, &csr_for("my-agent")).await.expect(200).body;
    let [record] = &listed(&world, &world.admin, "").await[..] else { panic!("one certificate") };
    let [leaf] = &pki_core::certificates_from_pem(text(&signed["cert_pem"]).as_bytes()).expect("PEM")[..] else {
        panic!("one certificate")
    };
    let leaf = pki_core::Certificate::from_der(leaf).expect("a certificate");
    let whoami = world.call(&key, "GET", "/api/whoami", Value::Null).await.expect(200).body;
    assert_eq!(
        record,
        &json!({
            "host": "my-agent.adit.localhost",
            "serial": base16ct::lower::encode_string(leaf.serial()),
            "fingerprint_sha256": signed["cert_fingerprint_sha256"],
            "issuer": "private",
            "profile": null,
            "key_sha256": base16ct::lower::encode_string(&Sha256::digest(leaf.spki())),
            "tunnel_id": tunnel,
            "organization_id": "org_own",
            "requested_by": whoami["key_id"],
            "not_before": record["not_before"],
            "not_after": signed["cert_expires_at"],
            "issued_at": "2026-11-22T13:30:00+00:00",
            "revoked_at": null,
        })
    );
    assert!(text(&record["not_before"]) <= text(&record["issued_at"]));
}

#[tokio::test]
async fn every_parameter_narrows_the_list() {
    let world = World::new().await;
    let first = world.tunnel("one-agent", "passthrough").await;
    let second = world.tunnel("two-agent", "passthrough").await;
    for (tunnel, host) in [(&first, "one-agent"), (&second, "two-agent"), (&first, "one-agent")] {
        world.sign(&world.admin, tunnel, &csr_for(host)).await.expect(200);
        world.clock.advance(DAY);
    }
    let all = listed(&world, &world.admin, "").await;
    let [a, b, c] = &all[..] else { panic!("three certificates") };
    let serial = text(&b["serial"]);
    let with_colons: Vec<_> =
        serial.as_bytes().chunks(2).map(|two| String::from_utf8_lossy(two).to_uppercase()).collect();
    for (query, expected) in [
        ("host=one-agent.adit.localhost".to_owned(), vec![a, c]),
        ("host=two-agent.adit.localhost&host_of=x".to_owned(), vec![b]),
        ("host=three-agent.adit.localhost".to_owned(), vec![]),
        ("host=one-agent.elsewhere.test".to_owned(), vec![]),
        (format!("tunnel_id={second}"), vec![b]),
        (format!("tunnel_id={NO_UUID}"), vec![]),
        (format!("serial={serial}"), vec![b]),
        (format!("serial={}", with_colons.join(":")), vec![b]),
        ("serial=00".to_owned(), vec![]),
        (format!("fingerprint={}", text(&c["fingerprint_sha256"])), vec![c]),
        ("issuer=private&revoked=false".to_owned(), vec![a, b, c]),
        ("issuer=acme".to_owned(), vec![]),
        ("revoked=true".to_owned(), vec![]),
        (format!("expires_before={}", text(&b["not_after"]).replace('+', "%2B")), vec![a]),
        (format!("expires_after={}", text(&b["not_after"]).replace('+', "%2B")), vec![b, c]),
        (format!("tunnel_id={first}&expires_after={}", text(&b["not_after"]).replace('+', "%2B")), vec![c]),
        ("limit=2".to_owned(), vec![a, b]),
    ] {
        assert_eq!(listed(&world, &world.admin, &query).await.iter().collect::<Vec<_>>(), expected, "{query}");
    }
    let page = world.admin("GET", "/api/v1/certificates?limit=2", Value::Null).await.expect(200).body;
    let rest = listed(&world, &world.admin, &format!("cursor={}", text(&page["next_cursor"]))).await;
    assert_eq!(rest.iter().collect::<Vec<_>>(), [c]);
    for query in [
        "host=not%20a%20host",
        "serial=",
        "serial=xyz",
        "serial=012",
        "fingerprint=00",
        "tunnel_id=one-agent",
        "issuer=someone",
        "revoked=perhaps",
        "expires_before=tomorrow",
        "expires_before=2030-01-01",
        "host=a.test&host=b.test",
        "limit=0",
        "cursor=0",
    ] {
        world.admin("GET", &format!("/api/v1/certificates?{query}"), Value::Null).await.problem(422, "invalid-field");
    }
}

#[tokio::test]
async fn a_key_sees_its_own_certificates_only() {
    let world = World::new().await;
    let (_, mine, my_key) = world.identity("my-agent", "passthrough").await;
    let (_, hers, her_key) = world.identity("her-agent", "passthrough").await;
    world.sign(&my_key, &mine, &csr_for("my-agent")).await.expect(200);
    world.sign(&her_key, &hers, &csr_for("her-agent")).await.expect(200);
    assert_eq!(listed(&world, &world.admin, "").await.len(), 2);
    assert_eq!(listed(&world, &world.stranger, "").await, Vec::<Value>::new());
    let [own] = &listed(&world, &my_key, "").await[..] else { panic!("one certificate") };
    assert_eq!(own["tunnel_id"], json!(mine));
    assert_eq!(listed(&world, &my_key, &format!("tunnel_id={hers}")).await, Vec::<Value>::new());
    assert_eq!(listed(&world, &my_key, "host=her-agent.adit.localhost").await, Vec::<Value>::new());
    world.call("", "GET", "/api/v1/certificates", Value::Null).await.problem(401, "unauthorized");
}

#[tokio::test]
async fn certificates_outlive_their_tunnel_by_a_year_on_record() {
    let world = World::new().await;
    let (_, tunnel, key) = world.identity("my-agent", "passthrough").await;
    world.sign(&key, &tunnel, &csr_for("my-agent")).await.expect(200);
    world.admin("DELETE", "/api/v1/identities/my-agent", Value::Null).await;
    world.clock.advance((89 + 366) * DAY);
    world.app.sweep().await.expect("swept");
    assert_eq!(listed(&world, &world.admin, "host=my-agent.adit.localhost").await.len(), 1);
    world.clock.advance(2 * DAY);
    world.app.sweep().await.expect("swept");
    assert_eq!(listed(&world, &world.admin, "").await.len(), 0);
}

#[tokio::test]
async fn failures_are_counted_by_their_cause() {
    let world = World::new().await;
    let tunnel = world.tunnel("my-agent", "passthrough").await;
    world.sign(&world.admin, &tunnel, "no request").await.problem(400, "csr-refused");
    world.sign(&world.admin, NO_UUID, &csr_for("my-agent")).await.problem(404, "no-such-tunnel");
    let numbers = world.metrics.encode();
    for line in [
        "adit_certificate_failures_total{cause=\"csr-refused\"} 1",
        "adit_certificate_failures_total{cause=\"no-such-tunnel\"} 1",
    ] {
        assert!(numbers.contains(line), "{line}: {numbers}");
    }
}
