//! Sentences that require something and have no case, with the reasons.

/// A sentence without a case.
pub(super) struct Excused {
    /// The sentence, or a part of it that no other has.
    pub(super) sentence: &'static str,
    /// Set if only the device's user can break it.
    pub(super) addresses_user: bool,
    pub(super) reason: &'static str,
}

const fn user(sentence: &'static str, reason: &'static str) -> Excused {
    Excused { sentence, addresses_user: true, reason }
}

const fn unseen(sentence: &'static str, reason: &'static str) -> Excused {
    Excused { sentence, addresses_user: false, reason }
}

const PEERS: &str = "only a peer sees it: P2P needs a second device whose BAR the first one writes to, and a driver may \
                     stop all DMA or none but P2P";

const PATHS: &str = "a step is seen only where it fails; v2/arcs/combinations tests the state and the session at the end of \
                     each path";

pub(super) const EXCUSED: &[Excused] = &[
    user(
        "The user can then decide if it should execute a VFIO_DEVICE_RESET, attempt to return to the original state, or \
         attempt to return to some other state such as RUNNING or STOP.",
        "the user decides after a failed arc; cases test that the device then accepts a reset",
    ),
    user(
        "The user must consider the migration data stream carried over the FD to be opaque and must preserve the byte order \
         of the stream.",
        "the device cannot know what the user does with the stream between a read and a write",
    ),
    user(
        "The user should take steps to restrict access to vfio device regions while the device is in STOP_COPY or risk \
         corruption of the device migration data stream.",
        "the user, or its guest, makes the accesses",
    ),
    user(
        "The data stream fed into the data_fd should be taken from the data transfer output of a single FD during saving \
         from a compatible device.",
        "the user selects the stream; cases test that other streams do no harm",
    ),
    user(
        "Like while in STOP or STOP_COPY the user must not touch the device, otherwise the state can be exited.",
        "the user, or its guest, makes the accesses",
    ),
    user(
        "When handling these types of errors users should anticipate future revisions of this protocol using new states and \
         those states becoming visible in this case.",
        "the user reads the state",
    ),
    user(
        "It is recommended to leave PRE_COPY for STOP_COPY only after this field reaches zero.",
        "the user decides when to leave PRE_COPY",
    ),
    user(
        "User space can try higher values but should give up if the above can't be achieved as of some driver limitations.",
        "the user retries, or not",
    ),
    user(
        "A single call to start device DMA logging can be issued and a matching stop should follow at the end.",
        "the user makes both calls",
    ),
    user(
        "If any error is returned userspace should assume that the dirty log is corrupted.",
        "the user decides what to do about an error",
    ),
    user(
        "Error recovery is to consider all memory dirty and try to restart the dirty tracking, or to abort/restart the whole \
         migration.",
        "the user recovers",
    ),
    user(
        "ERROR - The device has failed and must be reset",
        "the user resets it; v2/resuming/error-needs-a-reset tests that nothing else leaves ERROR",
    ),
    unseen("PRE_COPY_P2P - PRE_COPY, except the device cannot do peer to peer DMA", PEERS),
    unseen(
        "The RUNNING_P2P and PRE_COPY_P2P states must prevent the device from initiating any new P2P DMA transactions.",
        PEERS,
    ),
    unseen(
        "If the device can identify P2P transactions then it can stop only P2P DMA, otherwise it must stop all DMA.",
        PEERS,
    ),
    unseen(
        "The migration driver must complete any such outstanding operations prior to completing the FSM arc into a P2P state.",
        PEERS,
    ),
    unseen(
        "As there are multiple paths through the FSM arcs the path should be selected based on the following rules:",
        PATHS,
    ),
    unseen("The path cannot have saving group states as interior arcs, only starting/end states.", PATHS),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_cases_that_exist() {
        let is_case = |id: &str| crate::suite::cases().any(|case| case.id() == id);
        for excuse in EXCUSED {
            let words = excuse.reason.split([' ', ';', ',']).filter(|word| word.starts_with("v2/"));
            words.for_each(|id| assert!(is_case(id), "{id}"));
        }
    }

    #[test]
    fn each_is_a_sentence_of_the_header() {
        let list = include_str!("linux-7.3.txt");
        for excuse in EXCUSED {
            assert!(list.lines().any(|line| line == excuse.sentence), "{}", excuse.sentence);
        }
    }
}
