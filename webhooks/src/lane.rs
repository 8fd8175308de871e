//! Lanes: healthy, slow and failing endpoints have sockets of their own, so that no number of one kind takes them from another.

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
    /// To all endpoints of a merchant, and to those that it has deleted.
    pub max_per_merchant: i32,
    pub max_per_endpoint: i32,
}

impl Lane {
    pub const ALL: [Self; 3] = [Self::Healthy, Self::Slow, Self::Failing];

    /// Together with the idle connections of `clients`, the sockets stay below the 1,024 open files that a process commonly
    /// has.
    pub fn limits(self) -> LaneLimits {
        match self {
            Self::Healthy => LaneLimits { max_in_flight: 384, max_per_merchant: 96, max_per_endpoint: 8 },
            Self::Slow => LaneLimits { max_in_flight: 128, max_per_merchant: 32, max_per_endpoint: 4 },
            // A failing endpoint is probed with one message at a time.
            Self::Failing => LaneLimits { max_in_flight: 64, max_per_merchant: 16, max_per_endpoint: 1 },
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
    fn some_fifty_silent_endpoints_of_four_merchants_fill_a_lane_and_no_fewer() {
        let LaneLimits { max_in_flight, max_per_endpoint, .. } = Lane::Healthy.limits();
        assert_eq!((max_in_flight / 48, max_per_endpoint), (8, 8));
        assert_eq!(Lane::Failing.limits().max_per_endpoint, 1);
        for LaneLimits { max_in_flight, max_per_merchant, .. } in Lane::ALL.map(Lane::limits) {
            assert_eq!(max_in_flight / 4, usize::try_from(max_per_merchant).unwrap());
        }
    }
}
