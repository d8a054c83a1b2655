//! The description of the interface that the server hands out.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use crate::world::World;

#[test]
fn it_is_openapi_3_1_and_lists_every_endpoint() {
    let document: Value = serde_json::from_str(&api::openapi()).expect("JSON");
    assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")), "{}", document["openapi"]);
    for (path, methods) in [
        ("/api/v1/tunnels", "get post"),
        ("/api/v1/tunnels/{tunnel_id}", "get patch delete"),
        ("/api/v1/tunnels/{tunnel_id}/sign-csr", "post"),
        ("/api/v1/tunnels/{tunnel_id}/restore", "post"),
        ("/api/v1/tunnels/{tunnel_id}/force", "delete"),
        ("/api/v1/tunnels/{tunnel_id}/rotate-secret", "post"),
        ("/api/v1/identities", "get post"),
        ("/api/v1/identities/{agent_handle}", "get patch delete"),
        ("/api/v1/api-keys", "get post"),
        ("/api/v1/api-keys/{key_id}", "delete"),
        ("/api/v1/certificates", "get"),
        ("/api/whoami", "get"),
    ] {
        let item = document["paths"][path].as_object().unwrap_or_else(|| panic!("{path} is missing"));
        let found: BTreeSet<_> = item.keys().map(String::as_str).filter(|key| *key != "parameters").collect();
        assert_eq!(found, methods.split(' ').collect(), "{path}");
        for (method, operation) in item {
            let responses = operation["responses"].as_object().expect("responses");
            assert!(responses.keys().any(|status| status.starts_with('2')), "{method} {path}");
            let with_body = if operation["requestBody"].is_object() { &["408", "413", "415", "422"][..] } else { &[] };
            for status in ["400", "401", "500", "503"].iter().chain(with_body) {
                assert!(responses.contains_key(*status), "{method} {path}: {status}");
            }
            for (status, response) in responses.iter().filter(|(status, _)| status.as_str() >= "400") {
                let types: Vec<_> = response["content"].as_object().expect("a body").keys().collect();
                assert_eq!(types, ["application/problem+json"], "{method} {path}: {status}");
            }
        }
    }
    assert_eq!(document["paths"].as_object().expect("paths").len(), 12, "a path that the list above lacks");
}

#[test]
fn every_reference_has_its_schema() {
    let document: Value = serde_json::from_str(&api::openapi()).expect("JSON");
    let mut open = vec![&document];
    let mut references = 0;
    while let Some(value) = open.pop() {
        match value {
            Value::Object(map) => {
                if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                    references += 1;
                    let pointer = reference.strip_prefix('#').expect("within the document");
                    assert!(document.pointer(pointer).is_some(), "{reference}");
                }
                open.extend(map.values());
            }
            Value::Array(list) => open.extend(list),
            _ => {}
        }
    }
    assert!(references > 20);
    let scheme = &document["components"]["securitySchemes"]["api_key"];
    assert_eq!((&scheme["in"], &scheme["name"]), (&json!("header"), &json!("X-API-Key")));
}

#[tokio::test]
async fn the_server_serves_it_to_everybody() {
    let world = World::new().await;
    let request = Request::get("/openapi.json").body(Body::empty()).expect("a request");
    let answer = world.send(request).await.expect(200);
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.body, serde_json::from_str::<Value>(&api::openapi()).expect("JSON"));
}
