//! Samples as a Parquet file.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use storage::SeriesSamples;
use storage_parquet::ParquetFileWriter;

/// Writes batches of samples to `sink`, some half a million at a time.
pub(crate) struct ParquetWriter<'a> {
    sink: &'a mut dyn Write,
    /// What the writer has made and the sink has not got yet.
    made: Made,
    writer: ParquetFileWriter<Made>,
}

impl<'a> ParquetWriter<'a> {
    pub(crate) fn new(sink: &'a mut dyn Write) -> Self {
        let made = Made::default();
        Self { sink, writer: ParquetFileWriter::new(made.clone()), made }
    }

    pub(crate) fn write(&mut self, batch: &SeriesSamples) -> Result<()> {
        self.writer.write(batch)?;
        Ok(self.sink.write_all(&self.made.take())?)
    }

    pub(crate) fn finish(self) -> Result<()> {
        let Self { sink, made, writer } = self;
        writer.finish()?;
        sink.write_all(&made.take())?;
        Ok(sink.flush()?)
    }
}

/// Bytes on their way from one to the other: the writer wants what can be sent to another thread.
#[derive(Clone, Default)]
struct Made(Arc<Mutex<Vec<u8>>>);

impl Made {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Made {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
