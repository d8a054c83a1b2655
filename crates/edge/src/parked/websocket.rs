//! A visitor's WebSocket joined with an agent's bridge: RFC 6455 frames on one
//! side, messages as JSON on the other.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agent_proto::Opcode;
use agent_proto::bridge::{Message, MessageDecoder, Outer, OuterDecoder};
use agent_proto::is_valid_close_code;
use agent_proto::limits::SMALL_WINDOW_FRAME;
use agent_proto::websocket::{Event, Reader, Role, write_close, write_frame};
use bytes::{Buf as _, Bytes, BytesMut};
use connections::Progress;
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::flow::send_frame;
use super::reply::hold;
use super::splice::Windows;
use super::streams::{Bridge, Connection};
use crate::Shared;

/// Serves until both sides have ended.
pub(crate) async fn run<IO>(visitor: IO, bridge: Bridge, shared: &Shared)
where
    IO: AsyncRead + AsyncWrite + Send,
{
    let settings = &shared.settings;
    let max_frame = match bridge.connection.windows {
        Windows::Small => SMALL_WINDOW_FRAME,
        Windows::Credited | Windows::CreditedInParts => settings.agent.max_message,
    };
    let (read, write) = split(visitor);
    let (frames, queued) = mpsc::unbounded_channel();
    let (closed, mut is_closed) = watch::channel(false);
    let Bridge { recv, send, connection } = bridge;
    let mut stopping = shared.stopping.clone();
    let (pong, progress) = (Pong::default(), Progress::default());
    let reader = Reader::new(Role::Server, max_frame);
    let mut to_agent = ToAgent {
        read,
        reader,
        send,
        connection: &connection,
        frames: frames.clone(),
        pong: &pong,
        is_closed: is_closed.clone(),
        progress: &progress,
        max_frame,
        is_mid_frame: false,
    };
    let max_message = settings.agent.max_agent_message;
    let mut to_visitor = ToVisitor { recv, frames, progress: &progress, max_message };
    let writer = write_all(write, queued, &pong, &closed, settings.visitor.stall);
    let forward = async {
        let end = tokio::select! {
            end = to_agent.pump() => end,
            _ = stopping.wait_for(|stop| *stop) => to_agent.close(RESTART, "service restart"),
            () = progress.stalled(settings.visitor.quiet) => to_agent.close(GOING_AWAY, "idle"),
        };
        to_agent.finish(end).await;
    };
    let backward = to_visitor.pump();
    let both = async {
        let (mut forward, mut backward) = (std::pin::pin!(forward), std::pin::pin!(backward));
        tokio::select! {
            // The visitor said goodbye: the agent's side ends soon after.
            () = forward.as_mut() => drop(timeout(CLOSING, backward).await),
            // The agent did: the visitor gets all that it said, however long it takes, and
            // answers the Close, or is cut off.
            () = backward.as_mut() => {
                let _ = is_closed.wait_for(|is_closed| *is_closed).await;
                drop(timeout(CLOSING, forward).await);
            }
        }
    };
    tokio::pin!(writer);
    let is_there = tokio::select! {
        () = both => true,
        // The visitor takes nothing any more: nobody is left to tell but the agent.
        _ = writer.as_mut() => false,
    };
    if !is_there {
        to_agent.tell(GOING_AWAY, String::new());
    }
    to_agent.end();
    // What the agent has not taken yet stays until it has.
    let (ToAgent { send, frames, .. }, ToVisitor { recv, .. }) = (to_agent, to_visitor);
    hold(recv, send);
    drop(frames);
    if is_there {
        // The answer to a Close of the visitor's, and the end.
        drop(timeout(CLOSING, writer).await);
    }
}

/// How long the second side may take to end after the first.
const CLOSING: Duration = Duration::from_secs(2);
/// RFC 6455 section 7.4.1 and the registry behind it.
const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;
const PROTOCOL_ERROR: u16 = 1002;
const TOO_BIG: u16 = 1009;
const INTERNAL_ERROR: u16 = 1011;
const RESTART: u16 = 1012;
/// Octets of a message that is not whole yet, before the agent gets them back.
const CREDIT: usize = 16 * 1024;
/// Octets that are read from a visitor at once.
const READ: usize = 16 * 1024;

/// What is to be written to the visitor.
type Frames = mpsc::UnboundedSender<Out>;

enum Out {
    /// The Pong that is due.
    Pong,
    /// Frames, and the octets of the bridge that they are.
    Frames(Bytes, Option<Credit>),
    /// The Close frame. Either side may want one; the first is written, and
    /// nothing after it (RFC 6455 section 5.5.1).
    Close(Bytes),
}

/// What the newest Ping said, until a Pong says it back: of several that wait, one
/// is answered (RFC 6455 section 5.5.3).
#[derive(Default)]
struct Pong(Mutex<Option<Bytes>>);

impl Pong {
    /// Is this the first that waits?
    fn put(&self, ping: Bytes) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(ping).is_none()
    }

    fn frame(&self) -> Bytes {
        let ping = self.0.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        let mut frame = BytesMut::new();
        write_frame(Opcode::Pong, &ping, None, &mut frame);
        frame.freeze()
    }
}

/// Octets that the agent gets back once they are written.
struct Credit {
    flow: h2::FlowControl,
    octets: usize,
}

/// Why the visitor's direction ends.
enum End {
    /// The agent's side is to hear of it: a Close, or one that we make of a loss.
    Visitor { code: u16, reason: String },
    /// The same, and the visitor was told so by us: it may be sending still.
    Ours { code: u16, reason: String },
    /// The agent's stream takes nothing any more.
    Agent,
}

struct ToAgent<'a, R> {
    read: R,
    reader: Reader,
    send: SendStream<Bytes>,
    connection: &'a Connection,
    frames: Frames,
    pong: &'a Pong,
    /// Is our Close written?
    is_closed: watch::Receiver<bool>,
    progress: &'a Progress,
    max_frame: usize,
    /// A part of a frame was sent, and nothing else may follow it.
    is_mid_frame: bool,
}

impl<R: AsyncRead + Unpin> ToAgent<'_, R> {
    async fn pump(&mut self) -> End {
        let mut buffer = BytesMut::with_capacity(READ);
        loop {
            match self.reader.next_event() {
                Ok(None) => {}
                Ok(Some(Event::Text(text))) => {
                    if let Some(end) = self.send(&Message::Text(text)).await {
                        return end;
                    }
                    continue;
                }
                Ok(Some(Event::Binary(data))) => {
                    if let Some(end) = self.send(&Message::Binary(data)).await {
                        return end;
                    }
                    continue;
                }
                Ok(Some(Event::Ping(data))) => {
                    if self.pong.put(data) {
                        self.queue(Out::Pong);
                    }
                    continue;
                }
                Ok(Some(Event::Pong(_))) => continue,
                Ok(Some(Event::Close { code, reason })) => {
                    let mut echo = BytesMut::new();
                    write_close(code, "", None, &mut echo);
                    self.queue(Out::Close(echo.freeze()));
                    return End::Visitor { code: code.unwrap_or(NORMAL), reason };
                }
                Err(violation) => return self.close(violation.close_code(), &violation.to_string()),
            }
            buffer.clear();
            buffer.reserve(READ);
            match self.read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return End::Visitor { code: GOING_AWAY, reason: String::new() },
                Ok(_) => self.reader.push(&buffer),
            }
            self.progress.made();
        }
    }

    async fn send(&mut self, message: &Message) -> Option<End> {
        if message.encoded_len() > self.max_frame {
            return Some(self.close(TOO_BIG, "message too big"));
        }
        let mut frame = BytesMut::with_capacity(message.encoded_len());
        message.encode(None, &mut frame);
        // With small windows a frame is sent as a whole, or not at all.
        self.is_mid_frame = self.connection.windows != Windows::Small;
        let sent = send_frame(&mut self.send, self.connection, frame.freeze()).await;
        self.is_mid_frame = false;
        sent.err().map(|_| End::Agent)
    }

    /// Tells the visitor, and then the agent, that it is over.
    fn close(&self, code: u16, reason: &str) -> End {
        let mut close = BytesMut::new();
        write_close(Some(code), reason, None, &mut close);
        self.queue(Out::Close(close.freeze()));
        End::Ours { code, reason: reason.to_owned() }
    }

    /// The inner close, with the end of the stream: nothing may follow it. A
    /// visitor that was told by us is heard out, or it would lose our Close.
    async fn finish(&mut self, end: End) {
        let is_ours = matches!(end, End::Ours { .. });
        let (End::Visitor { code, reason } | End::Ours { code, reason }) = end else { return };
        self.tell(code, reason);
        if is_ours {
            let mut is_closed = self.is_closed.clone();
            let out_of_time = async {
                // The clock runs from when it has our Close.
                let _ = is_closed.wait_for(|is_closed| *is_closed).await;
                sleep(CLOSING).await;
            };
            tokio::select! {
                () = self.hear_out() => {}
                () = out_of_time => {}
            }
        }
    }

    /// Tells the agent that it is over.
    fn tell(&mut self, code: u16, reason: String) {
        if self.is_mid_frame {
            self.send.send_reset(h2::Reason::CANCEL);
            return;
        }
        let mut frame = BytesMut::new();
        Message::Close { code, reason }.encode(None, &mut frame);
        // Small: h2 keeps it until there is room. If the stream has ended, so be it.
        let _ = self.send.send_data(frame.freeze(), true);
    }

    /// Reads until the visitor has answered our Close (RFC 6455 section 7.1.1), or
    /// after a frame that cannot be read, until it has ended.
    async fn hear_out(&mut self) {
        let mut is_readable = true;
        let mut buffer = BytesMut::with_capacity(READ);
        loop {
            while is_readable {
                match self.reader.next_event() {
                    Ok(Some(Event::Close { .. })) => return,
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => is_readable = false,
                }
            }
            buffer.clear();
            buffer.reserve(READ);
            match self.read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) if is_readable => self.reader.push(&buffer),
                Ok(_) => {}
            }
        }
    }

    /// Ends our half of the stream, if it has not ended.
    fn end(&mut self) {
        let _ = self.send.send_data(Bytes::new(), true);
    }

    fn queue(&self, out: Out) {
        // Without a receiver the visitor has gone.
        let _ = self.frames.send(out);
    }
}

struct ToVisitor<'a> {
    recv: RecvStream,
    frames: Frames,
    progress: &'a Progress,
    max_message: usize,
}

impl ToVisitor<'_> {
    /// Reads eagerly: frames that nobody has read are held against the agent's
    /// whole connection. What is not written yet is not credited.
    async fn pump(&mut self) {
        let mut outer = OuterDecoder::new();
        let mut messages = MessageDecoder::new(self.max_message);
        let mut octets = 0;
        loop {
            let Some(Ok(chunk)) = self.recv.data().await else { return self.close(INTERNAL_ERROR, "") };
            self.progress.made();
            octets += chunk.len();
            outer.push(chunk);
            let mut out = BytesMut::new();
            let end = translate(&mut outer, &mut messages, &mut out);
            // A message in single octets makes no entry of each.
            if !out.is_empty() || octets >= CREDIT || end.is_some() {
                let credit = Credit { flow: self.recv.flow_control().clone(), octets: std::mem::take(&mut octets) };
                // Without a receiver the visitor has gone, and the bridge ends with it.
                if self.frames.send(Out::Frames(out.freeze(), Some(credit))).is_err() {
                    return;
                }
            }
            if let Some((code, reason)) = end {
                self.close(code, &reason);
                // Agents send a second close; it is read and forgotten.
                while let Some(Ok(rest)) = self.recv.data().await {
                    let _ = self.recv.flow_control().release_capacity(rest.len());
                }
                return;
            }
        }
    }

    fn close(&self, code: u16, reason: &str) {
        let code = if is_valid_close_code(code) { code } else { NORMAL };
        let mut close = BytesMut::new();
        write_close(Some(code), reason, None, &mut close);
        let _ = self.frames.send(Out::Close(close.freeze()));
    }
}

/// Turns what has come over the bridge into frames; answers the close, if it is there.
fn translate(outer: &mut OuterDecoder, messages: &mut MessageDecoder, out: &mut BytesMut) -> Option<(u16, String)> {
    loop {
        match messages.next_message() {
            Ok(Some(Message::Text(text))) => write_frame(Opcode::Text, text.as_bytes(), None, out),
            Ok(Some(Message::Binary(data))) => write_frame(Opcode::Binary, &data, None, out),
            Ok(Some(Message::Close { code, reason })) => return Some((code, reason)),
            Err(_) => return Some((TOO_BIG, "message too big".to_owned())),
            Ok(None) => match outer.next_event() {
                Ok(Some(Outer::Data(data) | Outer::Text(data))) => messages.push(&data),
                Ok(Some(Outer::Close { code, reason })) => return Some((code.unwrap_or(NORMAL), reason)),
                Ok(Some(Outer::Ping(_) | Outer::Pong)) => {}
                Ok(None) => return None,
                Err(_) => return Some((PROTOCOL_ERROR, String::new())),
            },
        }
    }
}

/// Writes what is queued, up to the Close, and gives the agent its octets back.
async fn write_all<W: AsyncWrite + Unpin>(
    mut write: W,
    mut queued: mpsc::UnboundedReceiver<Out>,
    pong: &Pong,
    closed: &watch::Sender<bool>,
    stall: Duration,
) -> io::Result<()> {
    let mut is_closed = false;
    while let Some(out) = queued.recv().await {
        let (frames, credit, is_close) = match out {
            Out::Pong => (pong.frame(), None, false),
            Out::Frames(frames, credit) => (frames, credit, false),
            Out::Close(frame) => (frame, None, true),
        };
        if !is_closed && !frames.is_empty() {
            // Slow is fine; who takes nothing at all is given up.
            let mut rest = frames;
            while !rest.is_empty() {
                match timeout(stall, write.write(&rest)).await?? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    octets => rest.advance(octets),
                }
            }
            is_closed = is_close;
            if is_closed || queued.is_empty() {
                timeout(stall, write.flush()).await??;
            }
            if is_closed {
                closed.send_replace(true);
            }
        }
        if let Some(mut credit) = credit {
            // Fails only when the stream is gone.
            let _ = credit.flow.release_capacity(credit.octets);
        }
    }
    write.shutdown().await
}
