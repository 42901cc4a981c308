//! Reads what a PostgreSQL server answers, only to see when it has committed.

/// Follows the server's messages: a type's byte, the length of the rest, itself included, and the rest.
#[derive(Default)]
pub struct Answers {
    /// The message's beginning so far; no more of it than matters.
    start: Vec<u8>,
    /// Bytes of it still to come, once its length is known.
    left: usize,
}

/// The whole message that says that a transaction was committed: CommandComplete, with the tag.
const COMMITTED: &[u8] = b"C\0\0\0\x0bCOMMIT\0";

impl Answers {
    /// Whether a message that says so ends in these bytes.
    pub fn show_a_commit(&mut self, bytes: &[u8]) -> bool {
        let mut is_commit = false;
        let mut rest = bytes;
        while let Some((&byte, behind)) = rest.split_first() {
            if self.start.len() < COMMITTED.len() || self.left == 0 {
                self.start.push(byte);
                self.left = self.left.saturating_sub(1);
                rest = behind;
                if let [_, a, b, c, d] = self.start[..] {
                    self.left = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_sub(4);
                }
            } else {
                let skipped = self.left.min(rest.len());
                self.left -= skipped;
                rest = &rest[skipped..];
            }
            if self.start.len() >= 5 && self.left == 0 {
                is_commit |= self.start == COMMITTED;
                self.start.clear();
            }
        }
        is_commit
    }
}
