//! A passthrough connection as a stream: octets, both ways.

use std::io;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::time::timeout;
use tunnel_model::Failure;

use super::session::InFlight;
use super::upload::capacity;
use crate::link::{Duplex, LinkError, Payload, Receiver, Room, Sender};

/// Octets of one visitor.
pub(crate) struct Octets {
    to_agent: ToAgent,
    to_visitor: ToVisitor,
    in_flight: InFlight,
}

pub(crate) struct ToAgent(SendStream<Bytes>);

pub(crate) struct ToVisitor {
    recv: RecvStream,
    /// Octets of what was given out, which the agent has not got back.
    uncredited: usize,
}

/// Octets that are read of a visitor at once.
const PAYLOAD: usize = 64 * 1024;
/// How long the agent may take for the rest of a stream whose visitor has gone.
const HOLD: std::time::Duration = std::time::Duration::from_secs(10);

impl Octets {
    pub(super) fn new(send: SendStream<Bytes>, recv: RecvStream, in_flight: InFlight) -> Self {
        Self { to_agent: ToAgent(send), to_visitor: ToVisitor { recv, uncredited: 0 }, in_flight }
    }
}

impl Duplex for Octets {
    type Sender = ToAgent;
    type Receiver = ToVisitor;

    const IS_HALF_CLOSED: bool = true;

    fn halves(&mut self) -> (&mut ToAgent, &mut ToVisitor) {
        (&mut self.to_agent, &mut self.to_visitor)
    }

    fn close(self) {
        let Self { to_agent: ToAgent(mut send), to_visitor: ToVisitor { mut recv, .. }, in_flight } = self;
        // If it has ended, this says nothing.
        let _ = send.send_data(Bytes::new(), true);
        if recv.is_end_stream() {
            return;
        }
        // A stream that nobody holds is reset, with what is on its way to the agent.
        tokio::spawn(async move {
            let rest = async {
                while let Some(Ok(chunk)) = recv.data().await {
                    // Fails only when the stream is gone.
                    let _ = recv.flow_control().release_capacity(chunk.len());
                }
            };
            // Either way it has had its time.
            let _ = timeout(HOLD, rest).await;
            drop((send, in_flight));
        });
    }

    fn reset(mut self) {
        self.to_agent.0.send_reset(Reason::CANCEL);
    }
}

impl Sender for ToAgent {
    fn room(&self) -> Room {
        Room { before: 0, payload: PAYLOAD }
    }

    async fn send(&mut self, payload: Payload) -> Result<(), LinkError> {
        let mut octets = payload.after(&[]);
        while !octets.is_empty() {
            let lost = LinkError::Failed(Failure::AgentLost);
            let room = capacity(&mut self.0, octets.len()).await.ok_or(lost)?;
            let part = octets.split_to(room.min(octets.len()));
            self.0.send_data(part, false).map_err(|_| lost)?;
        }
        Ok(())
    }

    fn finish(&mut self) {
        // If the stream has ended, so be it.
        let _ = self.0.send_data(Bytes::new(), true);
    }
}

impl Receiver for ToVisitor {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.uncredited > 0 {
            // Fails only when the stream is gone.
            let _ = self.recv.flow_control().release_capacity(std::mem::take(&mut self.uncredited));
        }
        match self.recv.data().await? {
            Ok(octets) => {
                self.uncredited = octets.len();
                Some(Ok(octets))
            }
            Err(error) => Some(Err(io::Error::other(error))),
        }
    }
}
