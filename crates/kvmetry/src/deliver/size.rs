//! How much a server takes in one request, as its answers teach it.
//!
//! A 413 and a request that is not answered in time halve it; a row of large requests that are taken doubles it
//! again, since a proxy's limit is raised and a link gets better. Where growing fails, the next try waits for a row
//! twice as long: a limit that stays costs ever fewer wasted requests.

/// Lines are put together up to this many bytes a request, before compression, when a server is behind. InfluxDB 3
/// answers a write only when it has synced its log, once a second, so many entries must share a request; its own limit
/// is 10 MiB.
pub(super) const PREFERRED_BYTES: usize = 4 << 20;
/// Below this many bytes of lines, some 2 kB compressed, it is not their number that makes a request slow: a time-out
/// halves nothing any more.
pub(super) const SMALL_BYTES: usize = 16 << 10;
/// Requests in a row that must be taken before more is tried, at first and at most.
const ROW: u32 = 8;
const LONGEST_ROW: u32 = 1024;

/// Bytes of lines for the next request.
#[derive(Debug)]
pub(super) struct Size {
    bytes: usize,
    /// Requests of about this size that were taken, one after the other.
    taken: u32,
    /// So many of them, and it grows.
    row: u32,
    /// It grew, and no large request was taken since.
    is_tried: bool,
}

impl Default for Size {
    fn default() -> Self {
        Self { bytes: PREFERRED_BYTES, taken: 0, row: ROW, is_tried: false }
    }
}

impl Size {
    /// At most so many.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A request with so many bytes of lines was taken.
    pub(super) fn took(&mut self, bytes: usize) {
        // A small one says nothing of larger ones.
        if bytes <= self.bytes / 2 {
            return;
        }
        self.is_tried = false;
        if self.bytes == PREFERRED_BYTES {
            self.row = ROW;
            return;
        }
        self.taken += 1;
        if self.taken >= self.row {
            *self = Self {
                bytes: (self.bytes * 2).min(PREFERRED_BYTES),
                taken: 0,
                row: self.row,
                is_tried: true,
            };
        }
    }

    /// A request with so many bytes of lines was too much.
    pub(super) fn was_too_much(&mut self, bytes: usize) {
        if self.is_tried {
            self.row = (self.row * 2).min(LONGEST_ROW);
        }
        *self = Self { bytes: self.bytes.min(bytes / 2).max(1), taken: 0, row: self.row, is_tried: false };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of these requests, each as large as may be, a server does not take.
    fn too_many(size: &mut Size, limit: usize, requests: usize) -> usize {
        let try_one = |_: &usize| {
            let is_too_much = size.bytes() > limit;
            if is_too_much {
                size.was_too_much(size.bytes())
            } else {
                size.took(size.bytes())
            }
            is_too_much
        };
        (0..requests).filter(try_one).count()
    }

    #[test]
    fn a_limit_that_stays_costs_ever_less() {
        let mut size = Size::default();
        assert_eq!(too_many(&mut size, 1 << 20, 100), 2 + 3, "down to it, then after 8, 16, 32 more");
        assert_eq!(size.bytes(), 1 << 20);
        assert!(too_many(&mut size, 1 << 20, 10_000) < 16);
    }

    #[test]
    fn a_limit_that_goes_is_forgotten() {
        let mut size = Size::default();
        too_many(&mut size, 100_000, 20);
        assert!(size.bytes() <= 100_000);
        assert_eq!(too_many(&mut size, usize::MAX, 10 * LONGEST_ROW as usize), 0);
        assert_eq!(size.bytes(), PREFERRED_BYTES);
    }

    #[test]
    fn a_small_request_says_nothing_of_large_ones() {
        let mut size = Size::default();
        size.was_too_much(2000);
        for _ in 0..100 {
            size.took(500);
        }
        assert_eq!(size.bytes(), 1000);
    }
}
