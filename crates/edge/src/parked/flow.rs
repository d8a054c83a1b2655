//! Sending frames to agents within the windows that they open.
//!
//! A Python agent has 65535 octets for all streams together, and gives those of
//! a bridge back only when a whole frame was consumed and 32767 octets are due.
//! So a frame is begun only when all of it fits, by one bridge at a time: two
//! halves of two frames would wait for each other for ever, and every other
//! request of the agent with them.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use tokio::time::timeout;

use super::splice::Windows;
use super::streams::Connection;

/// The stream takes nothing any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FlowError {
    #[error("the agent's stream has ended")]
    Ended,
    #[error("the agent's window did not open for {0:?}")]
    Stalled(Duration),
}

/// How long a frame waits for an agent that takes nothing.
const STALL: Duration = Duration::from_secs(60);

/// Sends one whole frame.
///
/// # Errors
///
/// Nothing was sent, or the stream has ended.
pub(crate) async fn send_frame(
    stream: &mut SendStream<Bytes>,
    connection: &Connection,
    mut frame: Bytes,
) -> Result<(), FlowError> {
    match connection.windows {
        Windows::Small => {
            let _turn = connection.turn.lock().await;
            let room = timeout(STALL, capacity(stream, frame.len(), frame.len())).await;
            room.map_err(|_| FlowError::Stalled(STALL)).flatten().inspect_err(|_| stream.reserve_capacity(0))?;
            stream.send_data(frame, false).map_err(|_| FlowError::Ended)
        }
        Windows::Credited | Windows::CreditedInParts => {
            while !frame.is_empty() {
                let room = timeout(STALL, capacity(stream, frame.len(), 1)).await;
                let room = room.map_err(|_| FlowError::Stalled(STALL)).flatten()?;
                let part = frame.split_to(room.min(frame.len()));
                stream.send_data(part, false).map_err(|_| FlowError::Ended)?;
            }
            Ok(())
        }
    }
}

/// Waits until at least `least` of `wanted` octets may be sent.
async fn capacity(stream: &mut SendStream<Bytes>, wanted: usize, least: usize) -> Result<usize, FlowError> {
    stream.reserve_capacity(wanted);
    loop {
        let room = stream.capacity();
        if room >= least {
            return Ok(room);
        }
        match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Err(FlowError::Ended),
        }
    }
}
