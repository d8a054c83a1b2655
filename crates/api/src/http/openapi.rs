//! What every operation of the OpenAPI document has in common: the problems that
//! a request can meet before it gets to a handler, and behind it.

use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, ResponseBuilder};

const PROBLEM: &str = "application/problem+json";

/// Of any request.
const ALWAYS: [(&str, &str); 4] = [
    ("400", "A malformed request: its Host header, or its body"),
    ("401", "No API key, or one that is unknown or revoked"),
    ("500", "The server failed; the log has the cause under the request's id"),
    ("503", "The server cannot take this request now"),
];

/// Of a request with a body.
const WITH_BODY: [(&str, &str); 4] = [
    ("408", "The body took too long to arrive"),
    ("413", "The body has more octets than are read"),
    ("415", "The body says that it is not JSON"),
    ("422", "The body has another shape, or a field breaks its rule"),
];

/// Adds what the handlers' own descriptions leave out.
pub(super) fn complete(document: &mut OpenApi) {
    let api_key = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
    document.components.get_or_insert_default().add_security_scheme("api_key", api_key);
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.patch, &mut item.delete];
        operations.into_iter().flatten().for_each(complete_operation);
    }
}

fn complete_operation(operation: &mut Operation) {
    let bodies = if operation.request_body.is_some() { &WITH_BODY[..] } else { &[] };
    let responses = &mut operation.responses.responses;
    for (status, description) in ALWAYS.iter().chain(bodies) {
        let problem = || ResponseBuilder::new().description(*description).content(PROBLEM, problem()).build();
        responses.entry((*status).to_owned()).or_insert_with(|| RefOr::T(problem()));
    }
    for (status, response) in responses {
        let RefOr::T(response) = response else { continue };
        if status.starts_with(['4', '5'])
            && let Some(content) = response.content.shift_remove("application/json")
        {
            response.content.insert(PROBLEM.to_owned(), content);
        }
    }
}

fn problem() -> Content {
    Content::new(Some(Ref::from_schema_name("Problem")))
}
