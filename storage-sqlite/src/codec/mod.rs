//! The bytes inside the database: how samples become blobs and how blobs are read back.
//!
//! Two formats: [`frame`] for the journal (fast to write), [`block`] for sealed blocks (small,
//! fast to read). Both end in a CRC-32 and neither trusts what it reads.

pub(crate) mod block;
pub(crate) mod frame;
mod pack;
pub(crate) mod times;
mod values;
mod varint;

use std::sync::Arc;

use storage_core::{Error, ErrorKind};

/// A stored sample before it becomes a record: time in milliseconds, value, metadata as JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RawSample {
    pub(crate) ms: i64,
    pub(crate) value: f64,
    pub(crate) metadata: Option<Arc<str>>,
}

/// The error for bytes that do not decode.
pub(crate) fn corrupt(problem: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, problem)
}

/// Appends the CRC-32 of everything in `bytes`.
fn append_crc(bytes: &mut Vec<u8>) {
    let crc = crc32fast::hash(bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
}

/// Returns `bytes` without their CRC-32, if it is right.
fn strip_crc(bytes: &[u8]) -> Result<&[u8], Error> {
    let (body, crc) =
        bytes.split_last_chunk::<4>().ok_or_else(|| corrupt("the blob is too short"))?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return Err(corrupt("the checksum does not match"));
    }
    Ok(body)
}
