//! Columns of numbers as pco packs them, with their length in front.

use pco::ChunkConfig;
use pco::data_types::Number;
use storage_core::{Error, ErrorKind};

use super::corrupt;
use super::varint::{Reader, put_u64};

pub(super) fn put_pco<T: Number>(
    bytes: &mut Vec<u8>,
    numbers: &[T],
    config: &ChunkConfig,
) -> Result<(), Error> {
    let packed = pco::standalone::simple_compress(numbers, config).map_err(|error| {
        Error::new(ErrorKind::Internal, "cannot compress a block").with_source(error)
    })?;
    put_u64(bytes, packed.len() as u64);
    bytes.extend_from_slice(&packed);
    Ok(())
}

/// Takes a column of `count` numbers and unpacks the first `wanted` of them, of which there are no
/// more than `count`: what lies behind costs nothing.
pub(super) fn take_pco<T: Number + Default>(
    reader: &mut Reader<'_>,
    count: usize,
    wanted: usize,
) -> Result<Vec<T>, Error> {
    let length = reader.count()?;
    let packed = reader.bytes(length)?;
    let mut numbers = vec![T::default(); wanted];
    let progress = pco::standalone::simple_decompress_into(packed, &mut numbers)
        .map_err(|error| corrupt("a column does not decompress").with_source(error))?;
    if progress.n_processed != wanted || (wanted == count && !progress.finished) {
        return Err(corrupt("a column has the wrong length"));
    }
    Ok(numbers)
}
