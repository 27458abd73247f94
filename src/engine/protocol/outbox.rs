//! The outbound queue of a connection.

use std::collections::VecDeque;
use std::io::IoSlice;

use super::frame::SharedFrame;
use crate::engine::limits::MAX_OUTBOX;

/// Frames in the order in which they are written. An empty queue allocates no memory.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: Frames,
    /// Bytes of the first frame that have been written.
    written: u32,
    /// Bytes of all frames that have not been written.
    bytes: u32,
}

/// There is nearly always at most one frame, for which nothing is allocated.
#[derive(Debug, Default)]
enum Frames {
    #[default]
    None,
    One(SharedFrame),
    Many(VecDeque<SharedFrame>),
}

/// The frame would have exceeded [`MAX_OUTBOX`] and was not added. The peer reads too slowly.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

/// What a frame costs besides its bytes: its slot in a queue that doubles when it is full, and its
/// allocation. If only bytes were counted, a peer that sends pings and never reads could make a
/// megabyte of two-byte answers use thirty.
const FRAME: usize = 48;

impl Outbox {
    /// Appends a frame. If the queue is empty, a frame of any length is accepted.
    ///
    /// # Errors
    /// [`Full`]
    pub fn push(&mut self, frame: SharedFrame) -> Result<(), Full> {
        let length = frame.bytes().len();
        if length == 0 {
            return Ok(());
        }
        if !self.is_empty() && self.buffered() + FRAME + length > MAX_OUTBOX {
            return Err(Full);
        }
        self.bytes += u32::try_from(length).map_err(|_| Full)?;
        self.frames = match std::mem::take(&mut self.frames) {
            Frames::None => Frames::One(frame),
            Frames::One(first) => Frames::Many(VecDeque::from([first, frame])),
            Frames::Many(mut frames) => {
                frames.push_back(frame);
                Frames::Many(frames)
            }
        };
        Ok(())
    }

    /// The bytes to be written next, if there is exactly one frame.
    #[must_use]
    pub fn only(&self) -> Option<&[u8]> {
        match &self.frames {
            Frames::One(frame) => frame.bytes().get(self.written as usize..),
            Frames::None | Frames::Many(_) => None,
        }
    }

    /// Fills `slices` with the bytes to be written next and returns how many slices it used.
    pub fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let (one, many) = match &self.frames {
            Frames::None => (None, None),
            Frames::One(frame) => (Some(frame), None),
            Frames::Many(frames) => (None, Some(frames)),
        };
        let mut skip = self.written as usize;
        let mut used = 0;
        for (slice, frame) in
            slices.iter_mut().zip(one.into_iter().chain(many.into_iter().flatten()))
        {
            *slice = IoSlice::new(frame.bytes().get(skip..).unwrap_or_default());
            skip = 0;
            used += 1;
        }
        used
    }

    /// Removes the next `count` bytes, which have been written.
    pub fn advance(&mut self, count: usize) {
        self.bytes = self.bytes.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        let mut count = self.written as usize + count;
        while let Some(length) = self.front().map(<[u8]>::len).filter(|length| *length <= count) {
            count -= length;
            self.pop_front();
        }
        if self.is_empty() {
            *self = Self::default();
        } else {
            self.written = u32::try_from(count).unwrap_or(u32::MAX);
        }
    }

    /// Discards all frames.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Bytes that have not been written.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// Memory in bytes; frames that are shared with other connections count in full.
    #[must_use]
    pub fn buffered(&self) -> usize {
        let frames = match &self.frames {
            Frames::None => 0,
            Frames::One(_) => 1,
            Frames::Many(frames) => frames.len(),
        };
        self.bytes() + frames * FRAME
    }

    /// Whether everything has been written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.front().is_none()
    }

    fn front(&self) -> Option<&[u8]> {
        let frame = match &self.frames {
            Frames::None => None,
            Frames::One(frame) => Some(frame),
            Frames::Many(frames) => frames.front(),
        };
        frame.map(SharedFrame::bytes)
    }

    fn pop_front(&mut self) {
        match &mut self.frames {
            Frames::Many(frames) => drop(frames.pop_front()),
            other => *other = Frames::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written_in_steps_of(step: usize, frames: &[&str]) -> Vec<u8> {
        let mut outbox = Outbox::default();
        for frame in frames {
            outbox.push(SharedFrame::encoded(frame.as_bytes().to_vec())).unwrap();
        }
        let mut all = Vec::new();
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); 3];
            let used = outbox.slices(&mut slices);
            let next: Vec<u8> =
                slices[..used].iter().flat_map(|slice| slice.iter().copied()).collect();
            assert!(outbox.only().is_none_or(|only| only == next));
            let count = step.min(next.len());
            all.extend_from_slice(&next[..count]);
            let before = outbox.bytes();
            outbox.advance(count);
            assert_eq!(outbox.bytes(), before - count);
        }
        all
    }

    #[test]
    fn partial_writes_neither_lose_nor_repeat_bytes() {
        let frames = ["abc", "", "d", "efghi", "jk", "l"];
        for step in 1..20 {
            assert_eq!(written_in_steps_of(step, &frames), b"abcdefghijkl", "{step}");
        }
    }

    #[test]
    fn the_queue_is_bounded_but_accepts_any_single_frame() {
        let mut outbox = Outbox::default();
        let big = SharedFrame::encoded(vec![0; MAX_OUTBOX + 10]);
        let small = SharedFrame::encoded(vec![0; 10]);
        outbox.push(big.clone()).unwrap();
        assert_eq!(outbox.push(small.clone()), Err(Full));
        outbox.advance(2 * FRAME + 10);
        assert_eq!(outbox.push(small.clone()), Err(Full));
        outbox.advance(10);
        outbox.push(small).unwrap();
        assert_eq!(outbox.push(big), Err(Full));
        assert_eq!(outbox.buffered(), MAX_OUTBOX);
    }

    #[test]
    fn short_frames_count_with_their_overhead() {
        let mut outbox = Outbox::default();
        let pushed = (0..MAX_OUTBOX).take_while(|_| outbox.push(SharedFrame::ping()).is_ok());
        assert_eq!(pushed.count(), MAX_OUTBOX / (FRAME + 2));
    }

    #[test]
    fn an_empty_queue_keeps_no_memory() {
        let mut outbox = Outbox::default();
        for _ in 0..100 {
            outbox.push(SharedFrame::ping()).unwrap();
        }
        outbox.advance(200);
        assert!(outbox.is_empty());
        assert!(matches!(outbox.frames, Frames::None));
    }
}
