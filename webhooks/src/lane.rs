//! Lanes: healthy, slow and failing endpoints have sockets of their own, so that no number of one kind takes them from another.

const MIB: usize = 1024 * 1024;

/// A lane, by the state of its endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// They respond fast.
    Healthy,
    /// They respond, but slowly.
    Slow,
    /// No success since the last failure.
    Failing,
}

/// How many messages a lane sends at once, per instance.
#[derive(Debug, Clone, Copy)]
pub struct LaneLimits {
    pub max_in_flight: usize,
    /// Of bodies in flight, and no more than one body above it. One with a hundred transfers has some 60 kB.
    pub max_bytes: usize,
    pub max_per_endpoint: i32,
}

impl LaneLimits {
    /// What a merchant may have in flight, to all its endpoints and to those that it has deleted, where so many places are `free`.
    pub fn per_merchant(&self, free: usize) -> i32 {
        i32::try_from(share(free, self.max_in_flight)).unwrap_or(i32::MAX)
    }

    /// The same of bytes. It may exceed that by one body.
    pub fn bytes_per_merchant(&self, free: usize) -> usize {
        share(free, self.max_bytes)
    }
}

/// A merchant's share of what is `free`: it leaves twice as much, so that whoever comes next finds some. A quarter of all at most.
fn share(free: usize, all: usize) -> usize {
    (free / 3).clamp(1, all / 4)
}

impl Lane {
    pub const ALL: [Self; 3] = [Self::Healthy, Self::Slow, Self::Failing];

    /// Together with the idle connections of `clients`, the sockets stay below the 1,024 open files that a process commonly
    /// has.
    pub fn limits(self) -> LaneLimits {
        match self {
            Self::Healthy => LaneLimits { max_in_flight: 384, max_bytes: 16 * MIB, max_per_endpoint: 8 },
            Self::Slow => LaneLimits { max_in_flight: 128, max_bytes: 8 * MIB, max_per_endpoint: 4 },
            // A failing endpoint is probed with one message at a time.
            Self::Failing => LaneLimits { max_in_flight: 64, max_bytes: 4 * MIB, max_per_endpoint: 1 },
        }
    }

    /// As metrics and SQL name it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Healthy => "well",
            Self::Slow => "slow",
            Self::Failing => "failing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_that_ten_merchants_have_filled_has_room_for_the_next() {
        let LaneLimits { max_in_flight, max_per_endpoint, .. } = Lane::Healthy.limits();
        assert_eq!((max_in_flight, max_per_endpoint), (384, 8));
        assert_eq!(Lane::Failing.limits().max_per_endpoint, 1);
        for limits in Lane::ALL.map(Lane::limits) {
            let most = limits.per_merchant(limits.max_in_flight);
            assert_eq!(limits.max_in_flight / 4, usize::try_from(most).unwrap());
            // One after the other takes what it may, and nothing of it ends.
            let (mut free, mut shares) = (limits.max_in_flight, Vec::new());
            while free > 0 {
                let mut share = 0;
                while free > 0 && share < limits.per_merchant(free) {
                    let more = limits.per_merchant(free) - share;
                    (share, free) = (share + more, free - usize::try_from(more).unwrap());
                }
                shares.push(share);
            }
            assert!(shares.len() > 10 && shares[0] == most, "{shares:?}");
            assert!(shares[4] >= i32::try_from(limits.max_in_flight / 16).unwrap(), "of four, the fifth has {shares:?}");
        }
    }
}
