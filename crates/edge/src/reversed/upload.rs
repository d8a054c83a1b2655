//! The body of a visitor's request on its way to the agent.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::time::Duration;

use agent_proto::visitor::onward_trailers;
use bytes::Bytes;
use h2::{Reason, SendStream};
use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use crate::link::discard;

/// A body, and its beginning for as long as it may have to be sent again.
pub(super) struct Upload {
    body: Incoming,
    /// What was taken of the body and is not sent yet.
    next: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    is_done: bool,
    /// What was sent.
    sent: VecDeque<Bytes>,
    room: usize,
    is_whole: bool,
}

/// Why a body does not go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stopped {
    /// The agent takes no more: its answer says why, if it has one.
    Agent,
    /// The visitor has broken off.
    Visitor,
}

/// Octets that are held, so that they can be sent to another session.
const MAX_HELD: usize = 64 * 1024;

impl Upload {
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            body,
            next: VecDeque::new(),
            trailers: None,
            is_done: false,
            sent: VecDeque::new(),
            room: MAX_HELD,
            is_whole: true,
        }
    }

    /// Goes back to the beginning; false if that is not there any more.
    pub(super) fn rewind(&mut self) -> bool {
        if !self.is_whole {
            return false;
        }
        while let Some(sent) = self.sent.pop_back() {
            self.room += sent.len();
            self.next.push_front(sent);
        }
        true
    }

    /// Nothing of it is sent again from here on.
    pub(super) fn commit(&mut self) {
        self.is_whole = false;
        self.sent = VecDeque::new();
    }

    /// Sends what there is, to the end. When this is dropped nothing is lost: called
    /// again, it goes on. `made` is told when something has moved.
    pub(super) async fn send(&mut self, stream: &mut SendStream<Bytes>, made: impl Fn()) -> Result<(), Stopped> {
        loop {
            while let Some(octets) = self.next.front_mut() {
                let room = capacity(stream, octets.len()).await.ok_or(Stopped::Agent)?;
                let part = octets.split_to(room.min(octets.len()));
                let is_empty = octets.is_empty();
                if is_empty {
                    self.next.pop_front();
                }
                let is_end = self.next.is_empty() && self.trailers.is_none() && self.body.is_end_stream();
                self.keep(&part);
                stream.send_data(part, is_end).map_err(|_| Stopped::Agent)?;
                made();
                if is_end {
                    return Ok(());
                }
            }
            if self.is_done || self.body.is_end_stream() {
                let ended = match self.trailers.clone() {
                    Some(trailers) => stream.send_trailers(trailers),
                    None => stream.send_data(Bytes::new(), true),
                };
                return ended.map_err(|_| {
                    // Nothing, if it has ended: nobody may wait for the rest.
                    stream.send_reset(Reason::INTERNAL_ERROR);
                    Stopped::Agent
                });
            }
            match self.body.frame().await {
                None => self.is_done = true,
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => self.next.push_back(data),
                    Err(frame) => {
                        self.is_done = true;
                        self.trailers = frame.into_trailers().ok().map(onward_trailers);
                    }
                },
                Some(Err(_)) => {
                    stream.send_reset(Reason::CANCEL);
                    return Err(Stopped::Visitor);
                }
            }
        }
    }

    /// Takes what the visitor still sends, for a while.
    pub(super) fn discard(self, time: Duration) {
        if !self.is_done && !self.body.is_end_stream() {
            discard(self.body, time);
        }
    }

    /// What is left of the body.
    pub(super) fn into_body(self) -> Incoming {
        self.body
    }

    fn keep(&mut self, part: &Bytes) {
        if !self.is_whole {
            return;
        }
        match self.room.checked_sub(part.len()) {
            Some(room) => {
                self.room = room;
                self.sent.push_back(part.clone());
            }
            None => self.commit(),
        }
    }
}

/// Waits until at least one of `wanted` octets may be sent. None if the stream has ended.
pub(super) async fn capacity(stream: &mut SendStream<Bytes>, wanted: usize) -> Option<usize> {
    stream.reserve_capacity(wanted);
    loop {
        let room = stream.capacity();
        if room > 0 {
            return Some(room);
        }
        poll_fn(|cx| stream.poll_capacity(cx)).await?.ok()?;
    }
}
