//! Reads what a PostgreSQL server answers, only to see when it has committed.

/// Follows the server's messages: a type's byte, the length of the rest, itself included, and the rest.
#[derive(Default)]
pub struct Answers {
    /// The message's beginning so far; no more of it than matters.
    start: Vec<u8>,
    /// Bytes of it still to come, once its length is known.
    left: usize,
}

/// The whole messages that say that a transaction was committed. Both are as long.
const COMMITTED: [&[u8; 12]; 2] = [
    // CommandComplete, with the tag.
    b"C\0\0\0\x0bCOMMIT\0",
    // DataRow, with one column, one byte, which is true: an event was recorded by a statement that stands alone. So
    // short an answer is sent once the statement has committed.
    b"D\0\0\0\x0b\0\x01\0\0\0\x01\x01",
];

impl Answers {
    /// Whether a message that says so ends in these bytes.
    pub fn show_a_commit(&mut self, bytes: &[u8]) -> bool {
        let mut is_commit = false;
        let mut rest = bytes;
        while let Some((&byte, behind)) = rest.split_first() {
            if self.start.len() < COMMITTED[0].len() || self.left == 0 {
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
                is_commit |= COMMITTED.iter().any(|message| self.start == *message);
                self.start.clear();
            }
        }
        is_commit
    }
}
