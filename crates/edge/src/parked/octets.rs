//! A passthrough connection as a bridge: octets in frames, both ways.

use std::io;
use std::sync::Arc;

use agent_proto::Opcode;
use agent_proto::bridge::{Outer, OuterDecoder, encode_outer_close, outer_prefix};
use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use tunnel_model::Failure;

use super::flow::send_frame;
use super::reply::hold;
use super::splice::MAX_OUTER_HEADER;
use super::streams::{Bridge, Connection};
use crate::link::{Duplex, LinkError, Payload, Receiver, Room, Sender};
use crate::tunnels::Ticket;

/// Octets of one visitor.
pub(crate) struct Octets {
    to_agent: ToAgent,
    to_visitor: ToVisitor,
    ticket: Ticket,
}

pub(crate) struct ToAgent {
    send: SendStream<Bytes>,
    connection: Arc<Connection>,
}

pub(crate) struct ToVisitor {
    recv: RecvStream,
    outer: OuterDecoder,
    /// Octets of what was given out, which the agent has not got back.
    uncredited: usize,
    has_ended: bool,
}

impl Octets {
    pub(super) fn new(Bridge { recv, send, connection }: Bridge, ticket: Ticket) -> Self {
        let to_visitor = ToVisitor { recv, outer: OuterDecoder::new(), uncredited: 0, has_ended: false };
        Self { to_agent: ToAgent { send, connection }, to_visitor, ticket }
    }

    /// Sends what there is already.
    pub(super) async fn send(&mut self, mut octets: Bytes) -> Result<(), LinkError> {
        let Room { before, payload } = self.to_agent.room();
        while !octets.is_empty() {
            let part = octets.split_to(octets.len().min(payload));
            let mut buffer = BytesMut::with_capacity(before + part.len());
            buffer.resize(before, 0);
            buffer.extend_from_slice(&part);
            self.to_agent.send(Payload::new(buffer, before)).await?;
        }
        Ok(())
    }
}

impl Duplex for Octets {
    type Sender = ToAgent;
    type Receiver = ToVisitor;

    // Agents end a bridge as a whole.
    const IS_HALF_CLOSED: bool = false;

    fn halves(&mut self) -> (&mut ToAgent, &mut ToVisitor) {
        (&mut self.to_agent, &mut self.to_visitor)
    }

    fn close(self) {
        let Self { to_agent: ToAgent { mut send, .. }, to_visitor: ToVisitor { recv, .. }, ticket } = self;
        // If it has ended, this says nothing.
        let _ = send.send_data(Bytes::new(), true);
        hold(recv, send);
        drop(ticket);
    }

    fn reset(self) {
        // An agent that is reset holds what it has sent for ever.
        self.close();
    }
}

impl Sender for ToAgent {
    fn room(&self) -> Room {
        Room { before: MAX_OUTER_HEADER, payload: self.connection.windows.tcp_payload() }
    }

    async fn send(&mut self, payload: Payload) -> Result<(), LinkError> {
        let header = outer_prefix(Opcode::Binary, payload.len(), None);
        let frame = payload.after(header.as_ref());
        let sent = send_frame(&mut self.send, &self.connection, frame).await;
        sent.map_err(|_| LinkError::Failed(Failure::AgentLost))
    }

    fn finish(&mut self) {
        let mut close = BytesMut::new();
        encode_outer_close(1000, "", None, &mut close);
        // Small: h2 keeps it until there is room. If the stream has ended, so be it.
        let _ = self.send.send_data(close.freeze(), true);
    }
}

impl Receiver for ToVisitor {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        while !self.has_ended {
            match self.outer.next_event() {
                Ok(Some(Outer::Data(data) | Outer::Text(data))) => return Some(Ok(data)),
                Ok(Some(Outer::Close { .. })) => self.has_ended = true,
                Ok(Some(Outer::Ping(_) | Outer::Pong)) => {}
                Err(error) => {
                    self.has_ended = true;
                    return Some(Err(io::Error::other(error)));
                }
                Ok(None) => {
                    // Fails only when the stream is gone.
                    let _ = self.recv.flow_control().release_capacity(std::mem::take(&mut self.uncredited));
                    match self.recv.data().await {
                        Some(Ok(chunk)) => {
                            self.uncredited = chunk.len();
                            self.outer.push(chunk);
                        }
                        Some(Err(_)) | None => self.has_ended = true,
                    }
                }
            }
        }
        None
    }
}
