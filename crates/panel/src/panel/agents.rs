//! Agents: made with a bundle, listed, changed, revoked.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::Map;
use zeroize::Zeroizing;

use super::{NewBundle, Panel, read_secret, require_free_label, require_valid, revocation};
use crate::authority::{Identity, Issued};
use crate::directory::{CLIENT_CERTIFICATE, CLIENT_KEY, CLIENT_P12};
use crate::error::Error;
use crate::state::{Agent, Edit, EnrollmentMethod, Grant, Mode, Serial, milliseconds};

impl Panel {
    /// Makes an agent's key and certificate.
    ///
    /// # Errors
    ///
    /// [`Error::AgentExists`], [`Error::CaKeyMissing`].
    pub async fn create_agent(&self, grant: Grant, by: Serial) -> Result<NewBundle, Error> {
        let directory = agent_directory(&grant.label)?;
        require_free_label(&self.directory.state(), &grant.label)?;
        let Identity { issued, key_pem, p12, password } = self.make(&common_name(&grant.label)).await?;
        self.remember(&issued).await?;
        let now = self.now();
        let bundle = NewBundle { password, serial: issued.serial.clone(), expires_at: issued.not_after };
        self.directory
            .change(move |state| {
                require_valid(state, &by)?;
                require_free_label(state, &grant.label)?;
                let files = vec![
                    (CLIENT_KEY, key_pem, Mode::Owner),
                    (CLIENT_CERTIFICATE, Zeroizing::new(issued.pem.clone().into_bytes()), Mode::World),
                    (CLIENT_P12, p12, Mode::Owner),
                ];
                let label = grant.label.clone();
                let edits = vec![
                    Edit::RememberKey(issued.serial.clone(), issued.key),
                    Edit::AddAgent(agent(grant, EnrollmentMethod::P12, &issued, now)),
                    Edit::PutDirectory(directory, files),
                ];
                Ok((edits, label))
            })
            .await
            .map(|label| tracing::info!(label, serial = %bundle.serial, "made an agent's bundle"))?;
        Ok(bundle)
    }

    /// Every agent that ever was, in the order of issuance.
    ///
    /// # Errors
    ///
    /// When the registry cannot be read.
    pub fn agents(&self) -> Result<Vec<Agent>, Error> {
        Ok(self.directory.state().agents()?.to_vec())
    }

    /// An agent's bundle, as long as its certificate counts.
    ///
    /// # Errors
    ///
    /// [`Error::AgentNotFound`].
    pub async fn agent_bundle(&self, label: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        let not_found = || Error::AgentNotFound(label.to_owned());
        let method = self.directory.state().active(label)?.map(|agent| agent.enrollment_method.clone());
        if method != Some(EnrollmentMethod::P12) {
            return Err(not_found());
        }
        let bundle = self.directory.paths().at(agent_directory(label)?).join(CLIENT_P12);
        read_secret(bundle).await?.ok_or_else(not_found)
    }

    /// Changes what an agent may do, from its next request on.
    ///
    /// # Errors
    ///
    /// [`Error::AgentNotFound`].
    pub async fn set_capabilities(&self, label: String, capabilities: Vec<String>, by: Serial) -> Result<(), Error> {
        self.update_agent(label, by, |agent| agent.capabilities = capabilities).await
    }

    /// Changes the sites that an agent may use, from its next request on.
    ///
    /// # Errors
    ///
    /// [`Error::AgentNotFound`].
    pub async fn set_allowed_sites(&self, label: String, sites: Vec<String>, by: Serial) -> Result<(), Error> {
        self.update_agent(label, by, |agent| agent.allowed_sites = sites).await
    }

    async fn update_agent(
        &self,
        label: String,
        by: Serial,
        update: impl FnOnce(&mut Agent) + Send + 'static,
    ) -> Result<(), Error> {
        self.directory
            .change(move |state| {
                require_valid(state, &by)?;
                let mut agent = state.active(&label)?.ok_or(Error::AgentNotFound(label))?.clone();
                update(&mut agent);
                Ok((vec![Edit::UpdateAgent(agent.serial.clone(), agent)], ()))
            })
            .await
    }

    /// Revokes an agent's certificate, and those of agents that it vouched for.
    ///
    /// # Errors
    ///
    /// [`Error::AgentNotFound`].
    pub async fn revoke(&self, label: String, by: Serial) -> Result<(), Error> {
        let now = self.now();
        self.directory
            .change(move |state| {
                require_valid(state, &by)?;
                if state.active(&label)?.is_none() {
                    return Err(Error::AgentNotFound(label));
                }
                let is_meant = |agent: &&Agent| {
                    !agent.revoked && (agent.label == label || agent.delegated_by.as_deref() == Some(&label))
                };
                let mut edits = Vec::new();
                for agent in state.agents()?.iter().filter(is_meant) {
                    edits.push(revocation(&agent.serial, &common_name(&agent.label), now));
                    let mut revoked = agent.clone();
                    (revoked.revoked, revoked.revoked_at) = (true, Some(milliseconds(now)));
                    edits.push(Edit::UpdateAgent(agent.serial.clone(), revoked));
                    // A label that others wrote and that is none has no directory of ours.
                    edits.extend(agent_directory(&agent.label).ok().map(Edit::Remove));
                }
                Ok((edits, label))
            })
            .await
            .map(|label| tracing::info!(label, "revoked an agent"))
    }
}

pub(super) fn agent(grant: Grant, enrollment_method: EnrollmentMethod, issued: &Issued, now: Timestamp) -> Agent {
    let Grant { label, capabilities, allowed_sites } = grant;
    Agent {
        label,
        serial: issued.serial.clone(),
        capabilities,
        allowed_sites,
        enrollment_method,
        created_at: Some(milliseconds(now)),
        expires_at: Some(milliseconds(issued.not_after)),
        revoked: false,
        revoked_at: None,
        delegated_by: None,
        rest: Map::new(),
    }
}

pub(super) fn common_name(label: &str) -> String {
    format!("agent:{label}")
}

/// A label may come from a file that others write: what is none is no path.
pub(super) fn agent_directory(label: &str) -> Result<PathBuf, Error> {
    if is_label(label) { Ok(Path::new("agents").join(label)) } else { Err(Error::InvalidLabel) }
}

/// How the label of an agent begins that another one vouched for.
pub(crate) const DELEGATED: &str = "plugin-agent:";

/// A label of an agent, or of an agent that another one vouched for.
pub(crate) fn is_label(text: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty()
            && word.bytes().all(|octet| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-')
    };
    match text.strip_prefix(DELEGATED) {
        Some(rest) => rest.split_once(':').is_some_and(|(delegator, name)| is_word(delegator) && is_word(name)),
        None => is_word(text),
    }
}
