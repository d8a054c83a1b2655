//! `/_system/attach`: an agent's connection becomes its link (docs/native-wire.md).

use agent_proto::{Attach, AttachError, WIRE_VERSION};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, HeaderName, UPGRADE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use connections::{Peer, upgraded};
use hyper::upgrade::OnUpgrade;
use tunnel_model::InstanceId;

use super::Shared;
use crate::attach::{Agent, Attached};
use crate::error::Error;

const TUNNEL: HeaderName = HeaderName::from_static("adit-tunnel");
const SESSION: HeaderName = HeaderName::from_static("adit-session");

/// Lets an agent in.
pub(super) async fn attach(State(shared): State<Shared>, mut request: Request) -> Result<Response, Error> {
    let on = request.extensions_mut().remove::<OnUpgrade>();
    let wanted = Attach::decode(request.headers()).map_err(refusal)?;
    let on = on.ok_or(Error::UnsupportedVersion { why: "HTTP/1.1 is needed for it" })?;
    let peer = request.extensions().get::<Peer>().cloned();
    let peer = peer.ok_or_else(|| Error::Internal("a connection of nobody".into()))?;
    let (tunnel, key) = shared.app.attachable(&wanted).await?;
    let id = tunnel.id;
    let Attach { instance, shares, own_certificate, response_deadline, .. } = wanted;
    let instance = InstanceId(instance);
    let Attached { session, serve } =
        shared.app.attach(Agent { tunnel, key, peer, instance, shares, own_certificate, response_deadline })?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let fields = response.headers_mut();
    fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    fields.insert(UPGRADE, HeaderValue::from_static(Attach::PROTOCOL));
    fields.insert(Attach::VERSION, HeaderValue::from_static(WIRE_VERSION));
    fields.insert(TUNNEL, HeaderValue::try_from(id.to_string()).map_err(Error::internal)?);
    fields.insert(SESSION, HeaderValue::try_from(session).map_err(Error::internal)?);
    tokio::spawn(async move {
        match upgraded(on).await {
            Ok(link) => serve(link).await,
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "an agent left at its 101"),
        }
    });
    Ok(response)
}

fn refusal(error: AttachError) -> Error {
    match error {
        AttachError::NoCredential => Error::Unauthorized,
        AttachError::NoUpgrade => Error::UnsupportedVersion { why: "this is no request for an upgrade" },
        AttachError::OtherVersion => Error::UnsupportedVersion { why: "the agent speaks other versions" },
        AttachError::Field(why) => Error::InvalidAttach(why),
        other => Error::internal(other),
    }
}
