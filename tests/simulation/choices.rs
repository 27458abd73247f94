//! Choices for the simulation: from a seed, or from the bytes of a fuzzer.

use crate::random::Random;

pub enum Choices {
    Seed(Random),
    /// After the last byte every choice is the first one.
    Bytes(std::vec::IntoIter<u8>),
}

impl Choices {
    pub fn seed(seed: u64) -> Self {
        Self::Seed(Random::new(seed))
    }

    pub fn bytes(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into_iter())
    }

    /// Whether all bytes are used up.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Bytes(bytes) if bytes.as_slice().is_empty())
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        match self {
            Self::Seed(random) => random.below(end),
            Self::Bytes(bytes) => {
                let (mut number, mut most) = (0, 0);
                while most < end - 1 {
                    number = number << 8 | usize::from(bytes.next().unwrap_or(0));
                    most = most << 8 | 0xff;
                }
                number % end
            }
        }
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}
