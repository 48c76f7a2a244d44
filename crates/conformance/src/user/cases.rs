//! The cases for users, by section. Faults are those of `whimbrel_device::wrap::fault`.

use whimbrel_protocol::MigrationFlags;

use super::header_sentences::{
    ABORT, ANY_STEP, CURRENT_STATE, ESTIMATES, INVALID_DATA, OPAQUE, OPTIONAL, RECOVERY, RESET, SINGLE_FD,
    SIZE, WHOLE,
};
use super::met::Met;
use super::rules;
use super::user_case::{Role, Rule, UserCase};
use crate::case::Level;

const fn source(level: Level, id: &'static str, sentence: &'static str, rule: Rule) -> UserCase {
    UserCase::new(Role::Source, level, id, sentence, rule)
}

const fn destination(level: Level, id: &'static str, sentence: &'static str, rule: Rule) -> UserCase {
    UserCase::new(Role::Destination, level, id, sentence, rule)
}

const ENTERING_STOP_COPY_FAILS: &str = "arc *->STOP_COPY: EIO";
const STOPPING_FAILS: &str = "arc RUNNING_P2P->STOP: EIO; arc RUNNING->STOP: EIO; arc PRE_COPY_P2P->STOP_COPY: EIO; \
                              arc PRE_COPY->STOP_COPY: EIO";
const DOES_NOT_STOP: &str = "arc RUNNING_P2P->STOP: 0; arc RUNNING->STOP: 0; arc PRE_COPY_P2P->STOP_COPY: 0; \
                             arc PRE_COPY->STOP_COPY: 0; temporary end: 0";
const DOES_NOT_RUN: &str = "arc STOP->RUNNING: 0; arc STOP->RUNNING_P2P: 0; arc RUNNING_P2P->RUNNING: 0";
const BREAKS_AT_STOP_COPY: &str = "arc *->STOP_COPY: EIO broken";
const STOP_COPY_ALONE: MigrationFlags = MigrationFlags::STOP_COPY;

/// The cases, by section. Each section begins with how a failed request is taken, and ends with what must not be done.
const ALL: &[&[UserCase]] = &[STATE, ERROR, DATA_FD, PRE_COPY, REGIONS, DIRTY];

const STATE: &[UserCase] = &[
    source(
        Level::Must,
        "user/state/failed-set-is-not-done",
        CURRENT_STATE,
        rules::failed_set_is_not_taken_as_done,
    )
    .faults(ENTERING_STOP_COPY_FAILS, Met::FailedSet),
    source(Level::Should, "user/state/recovery", RECOVERY, rules::failure_leaves_it_running)
        .faults(ENTERING_STOP_COPY_FAILS, Met::FailedSet),
    source(Level::Should, "user/state/recovery-from-pre-copy", RECOVERY, rules::failure_leaves_it_running)
        .faults("arc *->PRE_COPY: EIO; arc *->PRE_COPY_P2P: EIO", Met::FailedSet),
    source(Level::Should, "user/state/recovery-once", RECOVERY, rules::failure_leaves_it_running)
        .faults("arc *->STOP_COPY: EIO once", Met::FailedSet),
    source(Level::Should, "user/state/any-step-along-the-path", ANY_STEP, rules::failure_leaves_it_running)
        .faults(STOPPING_FAILS, Met::FailedSet),
    source(Level::Should, "user/state/recovery-from-p2p", RECOVERY, rules::failure_leaves_it_running)
        .faults("arc RUNNING->RUNNING_P2P: EIO; arc PRE_COPY->PRE_COPY_P2P: EIO", Met::FailedSet),
    source(
        Level::Robust,
        "user/state/stays-in-stop-copy",
        "A device that cannot leave STOP_COPY after its state was read is reset, or a program that fails tells where it is.",
        rules::failure_leaves_it_running,
    )
    .faults("arc STOP_COPY->STOP: EIO", Met::FailedSet),
    source(
        Level::Robust,
        "user/state/stays-in-pre-copy",
        "A device that cannot leave PRE_COPY after a failed read is not reported as running as before: it is reset, or the \
         program tells where it is.",
        rules::failure_leaves_it_running,
    )
    .faults(
        "read after 4KiB in PRE_COPY: EIO; arc PRE_COPY->RUNNING: EIO; arc PRE_COPY_P2P->RUNNING_P2P: EIO; \
         arc PRE_COPY_P2P->PRE_COPY: EIO",
        Met::FailedSet,
    ),
    source(
        Level::Robust,
        "user/state/stays-stopped",
        "A program that fails because the device does not run again after its state was read tells where the device is.",
        rules::failure_leaves_it_running,
    )
    .faults("arc STOP->RUNNING: EIO; arc STOP->RUNNING_P2P: EIO; arc RUNNING_P2P->RUNNING: EIO", Met::FailedSet),
    source(
        Level::Robust,
        "user/state/retry",
        "A request that fails each time is made at most 16 times.",
        rules::does_not_retry_without_end,
    )
    .faults(STOPPING_FAILS, Met::FailedSet),
    source(
        Level::Robust,
        "user/state/does-not-stop",
        "A device that answers 0 and does not stop is not taken as stopped: the data that it has now is not the state.",
        rules::failure_leaves_it_running,
    )
    .faults(DOES_NOT_STOP, Met::Elsewhere),
    source(
        Level::Robust,
        "user/state/does-not-run-again",
        "A device that answers 0 and does not run again is not reported as running: the program fails, and tells where the \
         device is.",
        rules::failure_leaves_it_running,
    )
    .faults(
        "read after 4KiB in STOP_COPY: EIO; arc STOP->RUNNING: 0",
        Met::Elsewhere,
    )
    .flags(STOP_COPY_ALONE),
    source(
        Level::Must,
        "user/state/slow-arcs",
        "The kernel migration driver must fully transition the device to the new state value before the operation returns to \
         the user.",
        rules::succeeds,
    )
    .faults("delay * 100ms", Met::Always),
    source(Level::Must, "user/state/optional-states", OPTIONAL, rules::requests_supported_states_only)
        .flags(STOP_COPY_ALONE),
    destination(
        Level::Must,
        "user/state/optional-states-at-the-destination",
        OPTIONAL,
        rules::requests_supported_states_only,
    )
    .flags(STOP_COPY_ALONE),
    source(
        Level::Must,
        "user/state/error-is-not-requested",
        "ERROR cannot be specified as a device state, however any transition request can be failed with an errno return and \
         may then move the device_state into ERROR.",
        rules::does_not_request_error,
    )
    .faults(STOPPING_FAILS, Met::FailedSet),
    source(
        Level::Must,
        "user/state/no-return-to-pre-copy",
        "These arcs are not permitted and return error if requested.",
        rules::does_not_return_to_pre_copy,
    )
    .faults("read after 0 in STOP_COPY: EIO", Met::PreCopy),
    destination(Level::Should, "user/state/resuming-fails", RECOVERY, rules::failure_is_reported)
        .faults("arc *->RESUMING: EIO", Met::FailedSet),
    destination(Level::Should, "user/state/resuming-fails-on-the-way", RECOVERY, rules::failure_is_reported)
        .faults("arc RUNNING->RUNNING_P2P: EIO; arc RUNNING_P2P->STOP: EIO; arc RUNNING->STOP: EIO", Met::FailedSet),
    destination(Level::Must, "user/state/invalid-data", INVALID_DATA, rules::failure_is_reported)
        .faults("arc RESUMING->STOP: EINVAL", Met::FailedSet),
    destination(Level::Must, "user/state/abort-of-resuming", ABORT, rules::resuming_is_aborted_by_reset)
        .faults("arc RESUMING->STOP: EINVAL", Met::FailedSet),
    destination(
        Level::Robust,
        "user/state/does-not-run",
        "A device that has taken a state, and does not run, is not reported as running.",
        rules::success_means_running,
    )
    .faults("arc STOP->RUNNING: EIO; arc STOP->RUNNING_P2P: EIO", Met::FailedSet),
    destination(
        Level::Robust,
        "user/state/stays-in-p2p",
        "A device that has taken a state, and stays in RUNNING_P2P, is not reported as running.",
        rules::success_means_running,
    )
    .faults("arc RUNNING_P2P->RUNNING: EIO", Met::FailedSet),
    destination(
        Level::Robust,
        "user/state/only-seems-to-run",
        "A device that has taken a state, answers 0 and does not run, is not reported as running.",
        rules::success_means_running,
    )
    .faults(DOES_NOT_RUN, Met::Elsewhere),
    destination(
        Level::Robust,
        "user/state/only-seems-to-be-loaded",
        "A state that the device has not taken, although it answers 0, is not reported as restored.",
        rules::failure_is_reported,
    )
    .faults("arc RESUMING->STOP: 0", Met::Elsewhere),
    destination(
        Level::Robust,
        "user/state/retry-at-the-destination",
        "A request that fails each time is made at most 16 times.",
        rules::does_not_retry_without_end,
    )
    .faults("arc RESUMING->STOP: EINVAL", Met::FailedSet),
];

const ERROR: &[UserCase] = &[
    source(Level::Must, "user/error/reset", RESET, rules::error_is_reset)
        .faults(BREAKS_AT_STOP_COPY, Met::InError),
    source(Level::Must, "user/error/reset-after-stop", RESET, rules::error_is_reset)
        .faults("arc *->STOP: EIO broken; arc PRE_COPY_P2P->STOP_COPY: EIO broken", Met::InError),
    source(Level::Must, "user/error/reset-after-saving", RESET, rules::error_is_reset)
        .faults("arc STOP_COPY->STOP: EIO broken", Met::InError),
    source(Level::Must, "user/error/is-no-success", WHOLE, rules::failure_is_reported)
        .faults(BREAKS_AT_STOP_COPY, Met::InError),
    source(
        Level::Robust,
        "user/error/without-an-errno",
        "A device that answers 0 and is in ERROR is reset, or the program tells.",
        rules::error_is_reset,
    )
    .faults("arc *->STOP_COPY: 0 broken", Met::InError),
    source(
        Level::Robust,
        "user/error/reset-fails",
        "A device in ERROR that cannot be reset is given up: the program fails, and says so.",
        rules::lost_device_is_told,
    )
    .faults("arc *->STOP_COPY: EIO broken; reset: EIO", Met::InError),
    destination(Level::Must, "user/error/reset-of-a-destination", RESET, rules::error_is_reset)
        .faults("arc STOP->RESUMING: EIO broken", Met::InError),
    destination(Level::Must, "user/error/reset-after-loading", RESET, rules::error_is_reset)
        .faults("arc RESUMING->STOP: EIO broken", Met::InError),
    destination(
        Level::Robust,
        "user/error/reset-of-a-destination-fails",
        "A device in ERROR that cannot be reset is given up: the program fails, and says so.",
        rules::lost_device_is_told,
    )
    .faults("arc RESUMING->STOP: EIO broken; reset: EIO", Met::InError),
];

const DATA_FD: &[UserCase] = &[
    source(Level::Must, "user/data-fd/end-of-stream", WHOLE, rules::succeeds),
    source(Level::Must, "user/data-fd/short-reads", WHOLE, rules::succeeds).faults("read after 4KiB: short 4096 times", Met::Always),
    source(Level::Must, "user/data-fd/failed-read", WHOLE, rules::failure_is_reported)
        .faults("read after 4KiB in STOP_COPY: EIO", Met::FailedData)
        .flags(STOP_COPY_ALONE),
    source(Level::Must, "user/data-fd/failed-first-read", WHOLE, rules::failure_is_reported)
        .faults("read after 0 in STOP_COPY: EIO", Met::FailedData),
    source(Level::Should, "user/data-fd/recovery", RECOVERY, rules::failure_leaves_it_running)
        .faults("read after 4KiB in STOP_COPY: EIO", Met::FailedData)
        .flags(STOP_COPY_ALONE),
    source(
        Level::Must,
        "user/data-fd/enomsg-in-stop-copy",
        "ENOMSG may not be returned in STOP_COPY.",
        rules::failure_is_reported,
    )
    .faults("read after 4KiB in STOP_COPY: ENOMSG", Met::ToldFailedRead)
    .flags(STOP_COPY_ALONE),
    source(
        Level::Robust,
        "user/data-fd/retry",
        "A read that fails each time is made at most 16 times.",
        rules::does_not_retry_without_end,
    )
    .faults("read after 4KiB in STOP_COPY: EIO", Met::FailedData),
    source(Level::Should, "user/data-fd/estimate-of-nothing", SIZE, rules::succeeds).faults("size: 0", Met::DataSize),
    source(Level::Should, "user/data-fd/huge-estimate", SIZE, rules::failure_leaves_it_running)
        .faults("size: 1024PiB", Met::DataSize),
    source(Level::Should, "user/data-fd/no-estimate", SIZE, rules::failure_leaves_it_running)
        .faults("size: EIO", Met::DataSize),
    destination(
        Level::Should,
        "user/data-fd/short-writes",
        "The user is not required to preserve buffer segmentation when writing the data stream during the RESUMING operation.",
        rules::succeeds,
    )
    .faults("write after 4KiB: short 4096 times", Met::Always),
    destination(Level::Must, "user/data-fd/failed-write", ABORT, rules::resuming_is_aborted_by_reset)
        .faults("write after 4KiB: EIO", Met::FailedData),
    destination(Level::Must, "user/data-fd/write-failed-once", ABORT, rules::resuming_is_aborted_by_reset)
        .faults("write after 4KiB: EIO once", Met::FailedData),
    destination(
        Level::Robust,
        "user/data-fd/retry-at-the-destination",
        "A write that fails each time is made at most 16 times.",
        rules::does_not_retry_without_end,
    )
    .faults("write after 4KiB: EIO", Met::FailedData),
    destination(Level::Must, "user/data-fd/byte-order", OPAQUE, rules::destination_gets_the_same_bytes).both(),
    source(Level::Should, "user/data-fd/single-fd", SINGLE_FD, rules::source_sends_one_session)
        .faults("read after 4KiB: EIO 2 times", Met::FailedData)
        .both(),
];

const PRE_COPY: &[UserCase] = &[
    source(
        Level::Should,
        "user/pre-copy/temporary-end",
        "During pre-copy the migration data FD has a temporary \"end of stream\" that is reached when both initial_bytes and \
         dirty_byte are zero.",
        rules::succeeds,
    )
    .met(Met::TemporaryEnd),
    source(
        Level::Kernel,
        "user/pre-copy/temporary-end-of-zero",
        "Some drivers return 0 at the temporary end, not ENOMSG: mtty, qat, hisi_acc (mtty_save_read() in \
         samples/vfio-mdev/mtty.c).",
        rules::succeeds,
    )
    .faults("temporary end: 0", Met::TemporaryEnd),
    source(
        Level::Robust,
        "user/pre-copy/early-temporary-end",
        "A temporary end before the reported data was read does not stop the migration forever.",
        rules::failure_leaves_it_running,
    )
    .faults("read after 4KiB in PRE_COPY: ENOMSG; read after 4KiB in PRE_COPY_P2P: ENOMSG", Met::TemporaryEnd),
    source(
        Level::Should,
        "user/pre-copy/initial-bytes",
        "It is recommended to leave PRE_COPY for STOP_COPY only after this field reaches zero.",
        rules::initial_data_is_read_first,
    )
    .met(Met::PrecopyInfo),
    source(
        Level::Should,
        "user/pre-copy/reinit",
        "The presence of the VFIO_PRECOPY_INFO_REINIT output flag indicates that new initial data is present on the stream.",
        rules::reinit_is_followed,
    )
    .faults("reinit at end 2 times", Met::Reinit),
    source(
        Level::Should,
        "user/pre-copy/early-reinit",
        "The presence of the VFIO_PRECOPY_INFO_REINIT output flag indicates that new initial data is present on the stream.",
        rules::reinit_is_followed,
    )
    .faults("reinit after 4KiB once", Met::Reinit),
    source(Level::Should, "user/pre-copy/estimates-of-nothing", ESTIMATES, rules::succeeds)
        .faults("precopy: initial 0 dirty 0", Met::PrecopyInfo),
    source(Level::Robust, "user/pre-copy/huge-estimates",
        "A device that always reports more data than it has does not hold the migration forever.",
        rules::failure_leaves_it_running,
    )
    .faults("precopy: initial 1024PiB dirty 1024PiB", Met::PrecopyInfo),
    source(
        Level::Robust,
        "user/pre-copy/no-estimates",
        "An error of VFIO_MIG_GET_PRECOPY_INFO does not cost the guest its device.",
        rules::failure_leaves_it_running,
    )
    .faults("precopy: EIO", Met::PrecopyInfo),
    source(Level::Should, "user/pre-copy/failed-read", RECOVERY, rules::failure_leaves_it_running)
        .faults("read after 4KiB in PRE_COPY: EIO", Met::FailedData),
    source(Level::Must, "user/pre-copy/end-is-not-taken", WHOLE, rules::success_means_whole)
        .faults("read after 0 in STOP_COPY: EIO", Met::PreCopy),
];

const REGIONS: &[UserCase] = &[
    source(
        Level::Should,
        "user/regions/stop-copy",
        "The user should take steps to restrict access to vfio device regions while the device is in STOP_COPY or risk \
         corruption of the device migration data stream.",
        rules::regions_rest_in_stop_copy,
    ),
    source(
        Level::Must,
        "user/regions/stop",
        "Like while in STOP or STOP_COPY the user must not touch the device, otherwise the state can be exited.",
        rules::regions_rest_while_stopped,
    ),
    destination(
        Level::Kernel,
        "user/regions/resuming",
        "A device in RESUMING is loading a new internal state, and its regions are not used (enum vfio_device_mig_state in \
         include/uapi/linux/vfio.h).",
        rules::regions_rest_in_resuming,
    ),
];

const DIRTY: &[UserCase] = &[
    source(
        Level::Must,
        "user/dirty/single-start",
        "Another start is not allowed in the meantime.",
        rules::logging_is_started_once,
    )
    .met(Met::Logging),
    source(
        Level::Should,
        "user/dirty/failed-report",
        "If any error is returned userspace should assume that the dirty log is corrupted.",
        rules::corrupted_log_is_not_used,
    )
    .faults("log report: EIO once", Met::FailedReport),
    source(
        Level::Should,
        "user/dirty/recovery",
        "Error recovery is to consider all memory dirty and try to restart the dirty tracking, or to abort/restart the whole \
         migration.",
        rules::failure_leaves_it_running,
    )
    .faults("log report: EIO", Met::FailedReport),
];

/// Returns all cases for users, by section.
pub fn cases() -> impl Iterator<Item = &'static UserCase> + Clone {
    ALL.iter().flat_map(|cases| cases.iter())
}
