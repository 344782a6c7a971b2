//! LEB128 varints with zigzag for signed numbers, and a reader that refuses to run past its end.

use storage_core::Error;

use super::corrupt;

pub(super) fn put_u64(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

pub(super) fn put_i64(bytes: &mut Vec<u8>, value: i64) {
    put_u64(bytes, ((value << 1) ^ (value >> 63)) as u64);
}

/// Takes values off the front of a slice.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn u8(&mut self) -> Result<u8, Error> {
        let (first, rest) = self.0.split_first().ok_or_else(truncated)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(corrupt("a number is longer than 64 bits"))
    }

    pub(super) fn i64(&mut self) -> Result<i64, Error> {
        let value = self.u64()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Reads a count of things that each take at least one byte of what is left.
    pub(super) fn count(&mut self) -> Result<usize, Error> {
        let count = usize::try_from(self.u64()?).map_err(|_| truncated())?;
        if count > self.0.len() { Err(truncated()) } else { Ok(count) }
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Error> {
        let count = self.count()?;
        std::str::from_utf8(self.bytes(count)?).map_err(|_| corrupt("a text is not UTF-8"))
    }
}

fn truncated() -> Error {
    corrupt("the blob ends too early")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_what_is_cut() {
        for value in [0, 1, -1, 63, -64, 64, i64::MAX, i64::MIN] {
            let mut bytes = Vec::new();
            put_i64(&mut bytes, value);
            assert_eq!(Reader(&bytes).i64().unwrap(), value);
            assert!(Reader(&bytes[..bytes.len() - 1]).i64().is_err());
        }
        assert!(Reader(&[0xff; 11]).u64().is_err());
    }
}
