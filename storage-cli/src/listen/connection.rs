//! One connection: its lines into records, and what is said about it.

use std::io::{self, BufReader, Read};
use std::time::Duration;

use anyhow::{Result, anyhow};
use storage::MetricRecord;
use tokio::time::timeout;

use super::Shared;
use super::socket::Stream;
use crate::error::line_of;
use crate::input::{self, Sink};
use crate::output::text;

/// What is read from a connection at once.
const BUFFER_BYTES: usize = 16 << 10;

/// How many bad lines of a connection are spelt out.
const BAD_SHOWN_MAX: u64 = 10;

/// How much is shown of an error, which may quote what was sent.
const ERROR_CHARS_MAX: usize = 500;

/// How long nothing may have arrived, at the end, until all is there.
const QUIET: Duration = Duration::from_millis(100);

/// A connection that is being read.
pub(super) struct Connection<'a> {
    shared: &'a Shared,
    stream: &'a Stream,
    peer: String,
    lines: u64,
    bad: u64,
}

impl<'a> Connection<'a> {
    pub(super) fn new(shared: &'a Shared, stream: &'a Stream, peer: String) -> Self {
        Self { shared, stream, peer, lines: 0, bad: 0 }
    }

    /// Reads it to its end.
    pub(super) fn read(mut self) {
        let Self { shared, stream, .. } = self;
        let text = BufReader::with_capacity(BUFFER_BYTES, Received { shared, stream });
        let read = input::read(text, &shared.syntax, &mut self);
        let peer = &self.peer;
        match read {
            Err(_) if shared.sender.is_closed() => shared.tally().cut_off += 1,
            Err(error) => {
                let error = text::printable(&line_of(&error, &[]), ERROR_CHARS_MAX);
                shared.voice.say(&format!("{peer}: {error}; the connection is closed"));
            }
            Ok(_) if self.bad > BAD_SHOWN_MAX => {
                let (bad, all) = (text::counted(self.bad, "bad line"), text::count(self.lines));
                shared.voice.say(&format!("{peer}: {bad} of {all}"));
            }
            Ok(_) => {}
        }
    }
}

/// What a peer sends, to its end, or until nothing comes any more when connections are being ended.
struct Received<'a> {
    shared: &'a Shared,
    stream: &'a Stream,
}

impl Received<'_> {
    async fn next(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut stopping = self.shared.stopping.subscribe();
        tokio::select! {
            biased;
            read = self.stream.read(buffer) => return read,
            // The sender lives as long as this.
            _ = stopping.wait_for(|is_stopping| *is_stopping) => {}
        }
        // What was sent may still be on its way.
        timeout(QUIET, self.stream.read(buffer)).await.unwrap_or(Ok(0))
    }
}

impl Read for Received<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.shared.sender.is_closed() {
            return Err(io::Error::other("the pipeline has ended"));
        }
        self.shared.runtime.block_on(self.next(buffer))
    }
}

impl Sink for Connection<'_> {
    fn line(&mut self) -> Result<()> {
        self.lines += 1;
        Ok(())
    }

    fn record(&mut self, record: MetricRecord) -> Result<()> {
        let sent = self.shared.sender.blocking_send(record);
        sent.map_err(|_| anyhow!("the pipeline has ended"))
    }

    fn bad(&mut self, line: u64, reason: &str) {
        self.bad += 1;
        self.shared.tally().bad_lines += 1;
        if self.bad <= BAD_SHOWN_MAX {
            self.shared.voice.say(&format!("{}:{line}: {reason}", self.peer));
        }
    }
}
