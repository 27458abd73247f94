//! Limits the number of frames that a connection receives in one second.

use crate::engine::limits::{MAX_CONTROL_FRAMES_PER_SECOND, MAX_FRAMES_PER_SECOND};
use crate::engine::protocol::reader::Frames;
use crate::engine::time::Time;

/// Frames received in the current second.
#[derive(Debug, Default)]
pub(super) struct FrameRate {
    second: u32,
    data: u16,
    control: u16,
}

impl FrameRate {
    /// Counts received frames; returns whether there are too many in this second.
    pub(super) fn is_exceeded_by(&mut self, now: Time, frames: Frames) -> bool {
        let second = now.as_seconds();
        if second != self.second {
            *self = Self { second, ..Self::default() };
        }
        let add =
            |count: u16, more: u32| count.saturating_add(u16::try_from(more).unwrap_or(u16::MAX));
        self.data = add(self.data, frames.data);
        self.control = add(self.control, frames.control);
        self.data > MAX_FRAMES_PER_SECOND || self.control > MAX_CONTROL_FRAMES_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_data_and_of_control_frames_apply_to_each_second() {
        let mut rate = FrameRate::default();
        let mut is_exceeded = |millis, data, control| {
            rate.is_exceeded_by(Time::from_millis(millis), Frames { data, control })
        };
        let (data, control) =
            (u32::from(MAX_FRAMES_PER_SECOND), u32::from(MAX_CONTROL_FRAMES_PER_SECOND));
        assert!(!is_exceeded(5_000, data - 1, 0));
        assert!(!is_exceeded(5_999, 1, control));
        assert!(is_exceeded(5_999, 1, 0));
        assert!(!is_exceeded(6_000, data, 0));
        assert!(is_exceeded(6_000, 0, control + 1));
        assert!(is_exceeded(7_000, u32::MAX, 0));
    }
}
