//! Agents with keys of their own: tokens, enrolment, and in place of a bundle.

use jiff::{SignedDuration, Timestamp};

use super::agents::{agent, agent_directory, common_name};
use super::{NewCertificate, Panel, new_certificate, require_free_key, require_free_label, require_valid, revocation};
use crate::authority::MAX_CSR;
use crate::error::Error;
use crate::identity::AgentCaller;
use crate::secret::{self, Secret};
use crate::state::{Edit, EnrollmentMethod, Grant, Serial, State, Token, TokenHash, milliseconds};

/// How long a token can be used.
const TOKEN_LIFETIME: SignedDuration = SignedDuration::from_mins(10);
/// How long a token is remembered.
const TOKEN_MEMORY: SignedDuration = SignedDuration::from_mins(60);

/// A right to enrol.
#[derive(Debug)]
pub struct NewToken {
    /// Told once; a hash of it is kept.
    pub token: Secret,
    /// When it ends.
    pub expires_at: Timestamp,
}

impl Panel {
    /// Makes a token with which an agent may enrol once.
    ///
    /// # Errors
    ///
    /// [`Error::AgentExists`], then [`Error::TokenExists`].
    pub async fn create_token(&self, grant: Grant, by: Serial) -> Result<NewToken, Error> {
        let token = secret::enrollment_token()?;
        let hash = TokenHash::of(token.expose());
        let now = self.now();
        let expires_at = now + TOKEN_LIFETIME;
        self.directory
            .change(move |state| {
                require_valid(state, &by)?;
                require_free_label(state, &grant.label)?;
                if state.has_pending_token(&grant.label, now)? {
                    return Err(Error::TokenExists(grant.label));
                }
                let forget = Edit::ForgetTokens(now - TOKEN_MEMORY..now + TOKEN_MEMORY);
                Ok((vec![forget, Edit::AddToken(Token::new(hash, grant, now, expires_at))], ()))
            })
            .await?;
        Ok(NewToken { token, expires_at })
    }

    /// Drops the token of a label; was there one that could be used?
    ///
    /// # Errors
    ///
    /// When the tokens cannot be read or written.
    pub async fn drop_token(&self, label: String, by: Serial) -> Result<bool, Error> {
        let now = self.now();
        self.directory
            .change(move |state| {
                require_valid(state, &by)?;
                let was_there = state.has_pending_token(&label, now)?;
                let edits = if was_there { vec![Edit::DropTokens(label)] } else { Vec::new() };
                Ok((edits, was_there))
            })
            .await
    }

    /// Signs an agent's own key for a token. The token is used when the
    /// certificate is on record, and not before.
    ///
    /// # Errors
    ///
    /// Those of the token, then of the label, then of the request.
    pub async fn enroll(&self, token: &str, csr: String) -> Result<(Grant, NewCertificate), Error> {
        let hash = TokenHash::of(token);
        // Strangers learn nothing and cost nothing: the token is looked at before the request.
        let grant = {
            let state = self.directory.state();
            let grant = redeemable(&state, &hash, self.now())?;
            if csr.len() > MAX_CSR {
                return Err(Error::CsrTooLarge);
            }
            require_free_label(&state, &grant.label)?;
            grant
        };
        let issued = self.sign(csr, common_name(&grant.label)).await?;
        self.remember(&issued).await?;
        let now = self.now();
        let certificate = new_certificate(&issued);
        let grant = self
            .directory
            .change(move |state| {
                // Others may have been faster.
                let grant = redeemable(state, &hash, now)?;
                require_free_label(state, &grant.label)?;
                require_free_key(state, &issued, None)?;
                let edits = vec![
                    Edit::UseToken(hash, now),
                    Edit::ForgetTokens(now - TOKEN_MEMORY..now + TOKEN_MEMORY),
                    Edit::RememberKey(issued.serial.clone(), issued.key),
                    Edit::AddAgent(agent(grant.clone(), EnrollmentMethod::HardwareBound, &issued, now)),
                ];
                Ok((edits, grant))
            })
            .await?;
        tracing::info!(label = grant.label, serial = %certificate.serial, "an agent enrolled");
        Ok((grant, certificate))
    }

    /// Signs the key that an agent made itself, in place of what it has.
    ///
    /// # Errors
    ///
    /// [`Error::AgentNotFound`], [`Error::Superseded`] and those of a request
    /// that is not signed.
    pub async fn upgrade_agent(&self, caller: AgentCaller, csr: String) -> Result<NewCertificate, Error> {
        let AgentCaller { label, serial, .. } = caller;
        if csr.len() > MAX_CSR {
            return Err(Error::CsrTooLarge);
        }
        if self.directory.state().active(&label)?.is_none() {
            return Err(Error::AgentNotFound(label));
        }
        let issued = self.sign(csr, common_name(&label)).await?;
        self.remember(&issued).await?;
        let now = self.now();
        let certificate = new_certificate(&issued);
        self.directory
            .change(move |state| {
                let mut agent = state.active(&label)?.ok_or(Error::AgentNotFound(label))?.clone();
                if agent.serial != serial {
                    return Err(Error::Superseded);
                }
                require_free_key(state, &issued, Some(&agent.serial))?;
                let before = std::mem::replace(&mut agent.serial, issued.serial.clone());
                agent.expires_at = Some(milliseconds(issued.not_after));
                agent.enrollment_method = EnrollmentMethod::HardwareBound;
                let whose = format!("{} (upgraded to hardware-bound)", common_name(&agent.label));
                let edits = vec![
                    revocation(&before, &whose, now),
                    Edit::RememberKey(issued.serial, issued.key),
                    Edit::Remove(agent_directory(&agent.label)?),
                    Edit::UpdateAgent(before, agent),
                ];
                Ok((edits, ()))
            })
            .await?;
        Ok(certificate)
    }
}

/// What a token grants, if it can be used now.
fn redeemable(state: &State, hash: &TokenHash, now: Timestamp) -> Result<Grant, Error> {
    // Nobody could use a certificate while revocations cannot be read.
    state.revoked()?;
    let token = state.token(hash)?.filter(|token| token.created_at + TOKEN_MEMORY > now);
    let token = token.filter(|token| !token.is_delegated()).ok_or(Error::TokenUnknown)?;
    if token.used {
        return Err(Error::TokenUsed);
    }
    if token.is_over(now) {
        return Err(Error::TokenExpired);
    }
    agent_directory(&token.label)?;
    Ok(Grant {
        label: token.label.clone(),
        capabilities: token.capabilities.clone(),
        allowed_sites: token.allowed_sites.clone(),
    })
}
