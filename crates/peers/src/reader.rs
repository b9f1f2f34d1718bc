//! Reads numbers and bytes from the front of a slice.

use banmesh_spop::varint;

use crate::Malformed;

const TRUNCATED: Malformed = Malformed("it ends too early");

#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        let (number, rest) =
            varint::decode(self.0).map_err(|_| Malformed("a number is cut short or exceeds 64 bits"))?;
        self.0 = rest;
        Ok(number)
    }

    /// A number that counts or measures something in this process.
    pub(crate) fn length(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.number()?).map_err(|_| Malformed("a length is too large"))
    }

    pub(crate) fn fixed(&mut self) -> Result<u32, Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(TRUNCATED)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*bytes))
    }
}
