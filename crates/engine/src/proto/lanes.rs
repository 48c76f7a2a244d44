//! Lanes: which connection of a migration carries which memory and which device's state.
//!
//! Memory goes by its address and state by its device, so that the order of a page, or of a state, is that of one connection.

/// Size of a stripe of memory, in bytes. Stripes begin at multiples of it, and the lanes take turns.
pub const STRIPE: u64 = 2 << 20;

/// The share of one lane in the memory and devices of a migration.
///
/// ```
/// use whimbrel_engine::proto::lanes::{STRIPE, Share};
///
/// let second = Share::new(1, 4);
/// assert!(second.has_memory(STRIPE, STRIPE) && !second.has_memory(STRIPE, STRIPE + 1));
/// assert_eq!(second.from(0), STRIPE);
/// assert_eq!(second.from(2 * STRIPE), 5 * STRIPE);
/// assert!(second.has_device(5));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    lane: u32,
    lanes: u32,
}

impl Share {
    /// All of it: the share of the only lane.
    pub const ALL: Share = Share { lane: 0, lanes: 1 };

    /// Returns the share of lane `lane` of `lanes`.
    pub fn new(lane: u32, lanes: u32) -> Share {
        Share { lane, lanes: lanes.max(1) }
    }

    /// Returns the lane that carries the state of a device.
    pub fn lane_of_device(device: u32, lanes: u32) -> u32 {
        device % lanes.max(1)
    }

    /// Returns whether this lane carries the state of a device.
    pub fn has_device(self, device: u32) -> bool {
        Share::lane_of_device(device, self.lanes) == self.lane
    }

    /// Returns whether one frame of this lane may carry `length` bytes from `address` on: they lie in one of its stripes.
    pub fn has_memory(self, address: u64, length: u64) -> bool {
        self.lanes == 1 || (self.from(address) == address && length <= self.until(address) - address)
    }

    /// Returns the first address from `address` on that is of this lane, or the maximum if no such address follows.
    pub fn from(self, address: u64) -> u64 {
        let lanes = u64::from(self.lanes);
        let stripe = address / STRIPE;
        let behind = (u64::from(self.lane) + lanes - stripe % lanes) % lanes;
        if behind == 0 { address } else { (stripe + behind).saturating_mul(STRIPE) }
    }

    /// Returns the end of the stripe of this lane that `address` lies in.
    pub fn until(self, address: u64) -> u64 {
        if self.lanes == 1 { u64::MAX } else { (address / STRIPE + 1).saturating_mul(STRIPE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_and_each_device_has_one_lane() {
        for lanes in 1..=16 {
            for stripe in (0..40).chain([u64::MAX / STRIPE - 1, u64::MAX / STRIPE]) {
                let address = stripe * STRIPE + 4096;
                let with = (0..lanes).filter(|lane| Share::new(*lane, lanes).has_memory(address, 4096));
                assert_eq!(with.count(), 1, "{lanes} {stripe}");
            }
            for device in 0..256 {
                let with = (0..lanes).filter(|lane| Share::new(*lane, lanes).has_device(device));
                assert_eq!(with.collect::<Vec<_>>(), [Share::lane_of_device(device, lanes)]);
            }
        }
    }

    #[test]
    fn a_lane_goes_from_stripe_to_stripe() {
        let share = Share::new(2, 3);
        assert_eq!(share.from(0), 2 * STRIPE);
        assert_eq!(share.from(2 * STRIPE + 5), 2 * STRIPE + 5);
        assert_eq!(share.until(2 * STRIPE + 5), 3 * STRIPE);
        assert_eq!(share.from(3 * STRIPE), 5 * STRIPE);
        assert_eq!(Share::ALL.from(77), 77);
        assert!(Share::ALL.has_memory(STRIPE - 1, u64::MAX));
        // There may be no stripe of a lane behind the last one.
        let last = u64::MAX / STRIPE * STRIPE;
        let next = Share::new(u32::try_from((last / STRIPE + 1) % 16).unwrap(), 16);
        assert_eq!(next.from(last), u64::MAX);
    }
}
