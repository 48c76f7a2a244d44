//! The header's sentences that several cases for users test, word for word.

pub(super) const WHOLE: &str =
    "End of stream on the FD indicates the entire device state has been transferred.";
pub(super) const CURRENT_STATE: &str = "If this function fails then current device_state may be the original operating state or \
                             some other state along the combination transition path.";
pub(super) const RECOVERY: &str = "The user can then decide if it should execute a VFIO_DEVICE_RESET, attempt to return to the \
                        original state, or attempt to return to some other state such as RUNNING or STOP.";
pub(super) const ANY_STEP: &str = "When working with combination arcs the user may see any step along the path in the device_state \
                        if SET_STATE fails.";
pub(super) const RESET: &str =
    "To recover from ERROR VFIO_DEVICE_RESET must be used to return the device_state back to RUNNING.";
pub(super) const INVALID_DATA: &str = "If the user provided data is found to be incomplete, inconsistent, or otherwise invalid, the \
                            migration driver must fail the SET_STATE ioctl and optionally go to the ERROR state as \
                            described below.";
pub(super) const ABORT: &str = "To abort a RESUMING session the device must be reset.";
pub(super) const OPAQUE: &str = "The user must consider the migration data stream carried over the FD to be opaque and must preserve \
                      the byte order of the stream.";
pub(super) const SINGLE_FD: &str = "The data stream fed into the data_fd should be taken from the data transfer output of a single FD \
                         during saving from a compatible device.";
pub(super) const ESTIMATES: &str = "Userspace may use the combination of these fields to estimate the potential data size available \
                         during the PRE_COPY phases, as well as trends relative to the rate the device is dirtying its \
                         internal state, but these fields are not required to have any bearing relative to the data size \
                         available during the STOP_COPY phase.";
pub(super) const SIZE: &str = "Upon VFIO_DEVICE_FEATURE_GET read back the estimated data length that will be required to complete stop \
                    copy.";
pub(super) const OPTIONAL: &str =
    "The optional states cannot be used with SET_STATE if the device does not support them.";
