//! What bodies and paths must say. All that is wrong is told, field by field,
//! in the words that clients know.

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use serde_json::{Map, Value, json};

use super::Shared;
use super::answer::Failure;
use crate::listing::is_domain;
use crate::panel::{DELEGATED, is_label};
use crate::state::{BASE_CAPABILITY, Grant};

/// A host name from the path.
pub(super) struct Domain(pub(super) String);

/// An agent's label from the path.
pub(super) struct Label(pub(super) String);

/// Characters of a label; of one that another agent's name is part of.
const MAX_LABEL: usize = 50;
const MAX_DELEGATED_LABEL: usize = 150;
const MAX_SITE: usize = 100;

impl FromRequestParts<Shared> for Domain {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Failure> {
        match path_parameter(parts, shared).await {
            Some(domain) if is_domain(&domain) => Ok(Self(domain)),
            _ => Err(Failure::invalid(&[issue(&["domain".into()], "Invalid domain name")])),
        }
    }
}

impl FromRequestParts<Shared> for Label {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<Self, Failure> {
        let Some(label) = path_parameter(parts, shared).await else {
            return Err(Failure::invalid(&[issue(&["label".into()], "Invalid agent label")]));
        };
        let max = if label.starts_with(DELEGATED) { MAX_DELEGATED_LABEL } else { MAX_LABEL };
        let mut issues = Issues::default();
        issues.length(&["label".into()], &label, max);
        if !is_label(&label) {
            issues.add(&["label".into()], "Invalid agent label");
        }
        issues.none_or(Self(label))
    }
}

/// The one parameter of a path, decoded; `None` if it is no text.
async fn path_parameter(parts: &mut Parts, shared: &Shared) -> Option<String> {
    let parameters = RawPathParams::from_request_parts(parts, shared).await.ok()?;
    let (_, value) = parameters.iter().next()?;
    Some(value.to_owned())
}

/// `{label, capabilities?, allowedSites?}`.
pub(super) fn grant(body: Option<Value>, is_capability: impl Fn(&str) -> bool) -> Result<Grant, Failure> {
    let mut issues = Issues::default();
    let body = object(body)?;
    let label = issues.text(&body, "label");
    if let Some(label) = &label {
        let path = ["label".into()];
        issues.length(&path, label, MAX_LABEL);
        if !is_word(label) {
            issues.add(&path, "Label must contain only lowercase letters, numbers, and hyphens");
        }
    }
    let capabilities = match body.get("capabilities") {
        None => Some(vec![BASE_CAPABILITY.to_owned()]),
        Some(_) => checked_capabilities(&mut issues, &body, true, is_capability),
    };
    let allowed_sites = match body.get("allowedSites") {
        None => Some(Vec::new()),
        Some(_) => checked_sites(&mut issues, &body),
    };
    let grant = label.zip(capabilities).zip(allowed_sites);
    let grant = grant.map(|((label, capabilities), allowed_sites)| Grant { label, capabilities, allowed_sites });
    issues.none_or(grant)?.ok_or_else(|| Failure::invalid(&[]))
}

/// `{capabilities}` for an agent. One that another agent vouches for has what
/// it was given and need not read tunnels.
pub(super) fn capabilities(
    body: Option<Value>,
    label: &str,
    is_capability: impl Fn(&str) -> bool,
) -> Result<Vec<String>, Failure> {
    let mut issues = Issues::default();
    let is_delegated = label.starts_with(DELEGATED);
    let found = checked_capabilities(&mut issues, &object(body)?, !is_delegated, is_capability);
    Ok(issues.none_or(found)?.unwrap_or_default())
}

/// `{allowedSites}`.
pub(super) fn allowed_sites(body: Option<Value>) -> Result<Vec<String>, Failure> {
    let mut issues = Issues::default();
    let found = checked_sites(&mut issues, &object(body)?);
    Ok(issues.none_or(found)?.unwrap_or_default())
}

/// `{token, csr}`.
pub(super) fn enrollment(body: Option<Value>) -> Result<(String, String), Failure> {
    let mut issues = Issues::default();
    let body = object(body)?;
    let token = issues.text(&body, "token");
    if token.as_deref() == Some("") {
        issues.add(&["token".into()], "Enrollment token is required");
    }
    let csr = checked_csr(&mut issues, &body);
    Ok(issues.none_or(token.zip(csr))?.unwrap_or_default())
}

/// `{csr}`.
pub(super) fn csr(body: Option<Value>) -> Result<String, Failure> {
    let mut issues = Issues::default();
    let found = checked_csr(&mut issues, &object(body)?);
    Ok(issues.none_or(found)?.unwrap_or_default())
}

fn object(body: Option<Value>) -> Result<Map<String, Value>, Failure> {
    match body {
        Some(Value::Object(object)) => Ok(object),
        None => Err(Failure::invalid(&[issue(&[], "Required")])),
        Some(other) => Err(Failure::invalid(&[issue(&[], &unexpected("object", &other))])),
    }
}

fn checked_csr(issues: &mut Issues, body: &Map<String, Value>) -> Option<String> {
    let csr = issues.text(body, "csr")?;
    let path = ["csr".into()];
    if csr.is_empty() {
        issues.add(&path, "CSR is required");
    }
    if !csr.contains("BEGIN CERTIFICATE REQUEST") {
        issues.add(&path, "CSR must be PEM-encoded");
    }
    Some(csr)
}

fn checked_capabilities(
    issues: &mut Issues,
    body: &Map<String, Value>,
    needs_base: bool,
    is_capability: impl Fn(&str) -> bool,
) -> Option<Vec<String>> {
    let values = issues.array(body, "capabilities")?;
    let path = ["capabilities".into()];
    let mut capabilities = Vec::with_capacity(values.len());
    for (at, value) in values.iter().enumerate() {
        match value {
            Value::String(capability) => capabilities.push(capability.clone()),
            other => issues.add(&["capabilities".into(), at.into()], &unexpected("string", other)),
        }
    }
    // A list with something else in it is not looked at as one of capabilities.
    if capabilities.len() < values.len() {
        return None;
    }
    if needs_base && !capabilities.iter().any(|capability| capability == BASE_CAPABILITY) {
        issues.add(&path, "tunnels:read is mandatory and cannot be removed");
    }
    for capability in capabilities.iter().filter(|capability| !is_capability(capability)) {
        issues.add(&path, &format!("Invalid capability: {capability}"));
    }
    Some(capabilities)
}

fn checked_sites(issues: &mut Issues, body: &Map<String, Value>) -> Option<Vec<String>> {
    let values = issues.array(body, "allowedSites")?;
    let mut sites = Vec::with_capacity(values.len());
    for (at, value) in values.iter().enumerate() {
        let path = ["allowedSites".into(), at.into()];
        let Value::String(site) = value else {
            issues.add(&path, &unexpected("string", value));
            continue;
        };
        issues.length(&path, site, MAX_SITE);
        if !is_word(site) || site.starts_with('-') || site.ends_with('-') {
            issues.add(&path, "Site name must contain only lowercase letters, numbers, and hyphens");
        }
        sites.push(site.clone());
    }
    Some(sites)
}

/// Lower-case letters, digits and hyphens, one or more.
fn is_word(text: &str) -> bool {
    let is_of_word = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-';
    !text.is_empty() && text.bytes().all(is_of_word)
}

/// What is wrong, in the order of the fields.
#[derive(Default)]
struct Issues(Vec<Value>);

impl Issues {
    fn add(&mut self, path: &[Value], message: &str) {
        self.0.push(issue(path, message));
    }

    /// Counted as clients count: in UTF-16 units.
    fn length(&mut self, path: &[Value], text: &str, max: usize) {
        if text.is_empty() {
            self.add(path, "String must contain at least 1 character(s)");
        } else if text.encode_utf16().count() > max {
            self.add(path, &format!("String must contain at most {max} character(s)"));
        }
    }

    fn text(&mut self, body: &Map<String, Value>, field: &str) -> Option<String> {
        match body.get(field) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(other) => {
                self.add(&[field.into()], &unexpected("string", other));
                None
            }
            None => {
                self.add(&[field.into()], "Required");
                None
            }
        }
    }

    fn array<'a>(&mut self, body: &'a Map<String, Value>, field: &str) -> Option<&'a Vec<Value>> {
        match body.get(field) {
            Some(Value::Array(values)) => return Some(values),
            Some(other) => self.add(&[field.into()], &unexpected("array", other)),
            None => self.add(&[field.into()], "Required"),
        }
        None
    }

    fn none_or<T>(self, value: T) -> Result<T, Failure> {
        if self.0.is_empty() { Ok(value) } else { Err(Failure::invalid(&self.0)) }
    }
}

fn issue(path: &[Value], message: &str) -> Value {
    json!({"path": path, "message": message})
}

fn unexpected(expected: &str, found: &Value) -> String {
    let found = match found {
        Value::Array(_) => "array",
        Value::Bool(_) => "boolean",
        Value::Null => "null",
        Value::Number(_) => "number",
        Value::Object(_) => "object",
        Value::String(_) => "string",
    };
    format!("Expected {expected}, received {found}")
}
