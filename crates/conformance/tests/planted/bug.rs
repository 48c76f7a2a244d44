//! The planted bugs, each with the case that must find it.

/// A bug of the card.
macro_rules! bugs {
    ($($(#[doc = $what:literal])+ $bug:ident => $($case:literal)|+,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Bug {
            $($(#[doc = $what])+ $bug,)*
        }

        /// All bugs, and the ids of the cases that must find them.
        pub(crate) const ALL: &[(Bug, &[&str])] = &[$((Bug::$bug, &[$($case),+]),)*];
    };
}

bugs! {
    // Bugs of real drivers, 2022 to 2026.
    /// Two concurrent writers use the same position (qat 4ec5e932).
    WritersRace => "v2/concurrent/writers",
    /// The length of a record in the state is not checked (qat, October 2024).
    LengthOverflows => "v2/robust/wrong-word" | "v2/robust/flipped-bit",
    /// Reads in PRE_COPY begin at the first byte each time (hisi_acc, CVE-2023-52453).
    PrecopyIgnoresOffset => "v2/precopy/left-early" | "v2/p2p/pre-copy-goes-on",
    /// A state without a guest driver's addresses cannot be loaded (hisi_acc 2777a409).
    FreshStatePanics => "v2/resuming/every-way-out",
    /// Mappings reach past the part of a region that is the user's (hisi_acc a8059790).
    MmapShowsMigrationRegisters => "v2/regions/mapping-past-the-end",
    /// Only the first 64 ranges of a log are logged (mlx5 032b4122).
    LogTakesFewRanges => "v2/dma-writes/many-ranges",
    /// A log of more than 64 ranges is refused (mlx5 032b4122).
    LogRefusesManyRanges => "v2/dma-logging/page-of-ranges",
    /// The state can be changed without the capability (CVE-2022-50117).
    OpsWithoutCapability => "v2/feature/probe",
    /// The migration flags lack STOP_COPY.
    FlagsWithoutStopCopy => "v2/feature/stop-copy-is-set" | "v2/feature/defined-flags",
    /// STOP_COPY to PRE_COPY loops forever (the core, a26b499b757c).
    BlockedArcLoops => "v2/arcs/blocked",
    /// A bad head fails with EFAULT, and its bytes count as loaded (mtty).
    BadDataCounts => "v2/resuming/refused-data",
    /// Two concurrent readers get the same piece, and no one gets the next.
    ReadersRace => "v2/concurrent/readers",
    /// A read beside another thread's is shorter, and its first and last byte change places.
    ReadersMixBytes => "v2/concurrent/readers",
    // Bugs that a trial driver had.
    /// Reads in STOP_COPY never end.
    NeverEnds => "v2/stop-copy/ends",
    /// A loaded state is never complete.
    LoadNeverComplete => "v2/round-trip/bytes",
    /// MIG_DATA_SIZE is 1000 times too large.
    DataSizeOff => "v2/data-size/estimate" | "v2/data-size/estimate-in-precopy",
    /// A state without its end is taken.
    CutAccepted => "v2/resuming/cut",
    /// The initial bytes never change.
    InitialConstant => "v2/precopy-info/initial-bytes",
    /// The pre-copy counts are always 0.
    PrecopyAlwaysZero => "v2/precopy-info/initial-bytes" | "v2/precopy-info/temporary-end",
    /// A reset keeps the old contents.
    ResetKeepsContents => "v2/reset/registers" | "v2/reset/saved-state",
    /// A register is lost at a load.
    RegisterLost => "v2/round-trip/registers" | "v2/round-trip/registers-after-reset",
    /// A second session has only what changed since the first.
    SecondSessionDelta => "v2/stop-copy/second-session",
    /// The DMA log is never filled.
    LogNeverFilled => "v2/dma-writes/all-are-logged",
    // State: GET and SET.
    /// A SET in ERROR resets the device and succeeds.
    ErrorCanBeLeft => "v2/resuming/error-needs-a-reset",
    /// GET says STOP_COPY after a SET out of RESUMING that failed.
    FailedLoadSaysStopCopy => "v2/resuming/failed-combination",
    /// GET always says RUNNING.
    GetSaysRunning => "v2/state/reached-at-return",
    /// GET says RUNNING in RUNNING_P2P.
    GetSkipsP2p => "v2/state/reached-at-return",
    /// GET fails in STOP_COPY.
    GetFailsInStopCopy => "v2/state/stays",
    /// SET of STOP succeeds and does nothing.
    SetDoesNotMove => "v2/state/reached-at-return",
    /// SET of RUNNING_P2P succeeds and does nothing.
    P2pDoesNotMove => "v2/state/reached-at-return",
    /// SET of STOP_COPY succeeds in STOP.
    StopsHalfway => "v2/state/reached-at-return",
    /// SET of ERROR succeeds.
    ErrorCanBeSet => "v2/state/error-cannot-be-set",
    /// SET of ERROR fails and stops the device.
    ErrorBreaks => "v2/state/error-cannot-be-set",
    /// SET of RUNNING_P2P succeeds without P2P.
    OptionalStateAccepted => "v2/state/optional-states-are-refused",
    /// SET of PRE_COPY succeeds without PRE_COPY.
    AbsentStateAccepted => "v2/arcs/without-pre-copy",
    /// Without P2P, RUNNING cannot be left for STOP.
    StopWithoutP2pFails => "v2/p2p/unsupported",
    /// SET of the current state fails.
    SameStateFails => "v2/state/current-state" | "v2/state/running-after-open",
    /// SET of PRE_COPY in PRE_COPY starts another session.
    SameStateStartsOver => "v2/state/current-state",
    /// A refused SET ends the session.
    RefusedSetEndsSession => "v2/arcs/blocked",
    /// A refused SET stops the device.
    RefusedSetMoves => "v2/state/error-cannot-be-set",
    // Arcs.
    /// RUNNING_P2P cannot be left for RUNNING.
    P2pToRunningFails => "v2/p2p/quiescent-arcs",
    /// SET of RUNNING_P2P never returns.
    P2pHangs => "v2/arcs/combinations",
    /// RUNNING_P2P clears the registers.
    P2pClearsRegisters => "v2/p2p/changes-nothing" | "v2/arcs/saving-changes-no-operation",
    /// PRE_COPY cannot be left for RUNNING.
    PrecopyCannotBeLeft => "v2/session/pre-copy-ends",
    /// PRE_COPY cannot be left for STOP_COPY.
    PrecopyCannotStopCopy => "v2/session/saving-group",
    /// Leaving STOP_COPY ends in ERROR.
    StopCopyBreaks => "v2/session/stop-copy-ends",
    /// STOP_COPY to RESUMING is refused.
    StopCopyCannotResume => "v2/arcs/combinations" | "v2/arcs/random-walk",
    /// RESUMING to RUNNING is refused.
    ResumingCannotRun => "v2/resuming/every-way-out" | "v2/arcs/running-again",
    /// STOP clears the registers.
    StopClearsRegisters => "v2/stop/registers-stay",
    /// The contents change in STOP.
    ChangesInStop => "v2/stop/state-stays",
    /// The card repeats its last DMA write in STOP.
    DmaInStop => "v2/stop/no-dma",
    /// The card interrupts in STOP.
    InterruptsInStop => "v2/stop/no-interrupts",
    /// Interrupts cannot be set up in STOP.
    InterruptsRefusedInStop => "v2/stop/interrupts-can-be-set-up",
    /// Configuration space cannot be read in STOP.
    ConfigSpaceRefusedInStop => "v2/stop/config-space",
    // The data fd.
    /// The data file is never readable to poll().
    FdNeverReadable => "v2/data-fd/readable-at-the-end",
    /// The data file is readable to poll() only at the end in STOP_COPY.
    FdReadableAtTheEnd => "v2/data-fd/readable-with-data",
    /// The data file is not readable to poll() again after the temporary end, whatever changes.
    FdNotReadableAgain => "v2/data-fd/readable-with-more-data",
    /// The data file is never writable to poll().
    FdNeverWritable => "v2/data-fd/writable",
    /// The data file is a plain file.
    FdIsFile => "v2/data-fd/no-position" | "v2/data-fd/no-mapping",
    /// The data file is a terminal.
    FdIsTerminal => "v2/data-fd/no-other-ioctl",
    /// The data file is not close-on-exec.
    FdIsInherited => "v2/session/close-on-exec",
    /// A nonblocking read gives EAGAIN at the end, for ever.
    NonblockingNeverEnds => "v2/data-fd/nonblocking",
    /// A nonblocking read in PRE_COPY gives EAGAIN, for ever.
    NonblockingPrecopyStalls => "v2/data-fd/nonblocking-pre-copy",
    /// The data file reads 0 after the close of the device.
    FdOutlivesDevice => "v2/data-fd/after-close",
    /// A read of 0 bytes takes a byte from the stream.
    EmptyReadTakesByte => "v2/data-fd/empty-read",
    /// After a write of 0 bytes all others fail.
    EmptyWriteRefuses => "v2/data-fd/empty-write",
    /// The close of a data file that was not read, in STOP_COPY, makes the next arc fail.
    EarlyCloseFailsArc => "v2/session/closed-early",
    /// STOP_COPY opens no data file.
    DataFdMissing => "v2/session/saving-begins",
    /// RESUMING opens no data file.
    DataFdMissingInResuming => "v2/session/resuming-begins",
    /// STOP returns a data file.
    DataFdInStop => "v2/arcs/combinations",
    /// PRE_COPY to STOP_COPY returns a second data file.
    DataFdTwice => "v2/session/saving-group",
    /// SET of STOP_COPY in STOP_COPY returns a data file.
    DataFdAtSameState => "v2/state/current-state",
    /// A data file can be read after its session.
    FileOutlivesSession => "v2/session/stop-copy-ends",
    /// A data file fails with EIO after its session.
    EndedFileIsEio => "v2/data-fd/after-reset" | "v2/concurrent/end-of-session" | "v2/session/ended-fd",
    /// A data file reads 0 after its session.
    EndedFileReadsNothing => "v2/data-fd/after-reset" | "v2/session/pre-copy-p2p-ends",
    /// A data file takes data after its session.
    EndedFileTakesData => "v2/data-fd/after-reset" | "v2/session/resuming-ends",
    /// A read of a resuming data file succeeds.
    ReadOnResuming => "v2/data-fd/wrong-direction",
    /// A write to a saving data file succeeds.
    WriteOnSaving => "v2/data-fd/wrong-direction",
    /// A read returns one byte more than it gave.
    ReadClaimsMore => "v2/round-trip/read-segments",
    /// A write returns one byte more than it was given.
    WriteClaimsMore => "v2/round-trip/write-segments",
    /// Reads of more than 4 KiB fail with EIO.
    LongReadsFail => "v2/round-trip/read-segments",
    /// Reads of less than 16 bytes fail.
    ShortReadsFail => "v2/round-trip/read-segments",
    /// Writes of more than 4 KiB fail.
    LongWritesFail => "v2/round-trip/write-segments",
    /// Of writes of more than 4 KiB, the rest is lost.
    LongWritesLost => "v2/round-trip/write-segments",
    /// A write of less than 16 bytes panics.
    ShortWritesPanic => "v2/round-trip/write-segments",
    /// Writes take 0 bytes from the 1000th on.
    WritesTakeNothing => "v2/round-trip/write-segments" | "v2/resuming/many-small-writes",
    /// A byte of the state depends on the size of the reads.
    DependsOnReadSize => "v2/round-trip/read-segments",
    /// A state cannot be loaded in pieces of less than 16 bytes.
    DependsOnWriteSize => "v2/round-trip/write-segments",
    /// Another byte comes after the end of the stream.
    EndNotStable => "v2/stop-copy/end-of-stream",
    /// A second read at the end of the stream fails.
    EndFailsLater => "v2/stop-copy/end-of-stream",
    /// The end in STOP_COPY is ENOMSG.
    EnomsgInStopCopy => "v2/stop-copy/no-enomsg",
    // Sessions.
    /// The tenth session that begins in PRE_COPY fails with ENOMEM.
    PrecopySessionsRunOut => "v2/precopy/entered-often",
    /// A reset after a write of another thread leaves the device in STOP.
    ResetRacesWithWriter => "v2/concurrent/reset-of-session",
    /// A second session is empty.
    SecondSessionEmpty => "v2/stop-copy/second-session",
    /// A session that was given up leaves its offset to the next one.
    AbandonedSaveLeavesOffset => "v2/stop-copy/given-up" | "v2/precopy/given-up" | "v2/stop-copy/given-up-in-pre-copy",
    /// A load that was given up leaves its data to the next one.
    AbandonedLoadLeavesData => "v2/resuming/abort" | "v2/robust/cut",
    /// A session that a reset ended leaves its offset to the next one.
    ResetKeepsOffset => "v2/reset/in-precopy",
    /// Closing the data file of an ended session ends the next one.
    CloseEndsNextSession => "v2/session/closed-in-any-order",
    // The state as it is saved and loaded.
    /// An early attempt to leave RESUMING loses the first block.
    EarlyLeaveLosesBlock => "v2/resuming/going-on",
    /// The second card loses a register at a load.
    SecondLosesRegister => "v2/round-trip/second-bytes" | "v2/round-trip/second-registers",
    /// After a load, changes are not sent.
    LoadStopsTracking => "v2/round-trip/change-after-load",
    /// Each load counts in a register.
    LoadIsCounted => "v2/stream/saved-again",
    /// No data at all is taken for a state.
    EmptyAccepted => "v2/resuming/empty",
    /// The checksum is not checked, but a state that it does not fit is saved without its contents.
    SpoiltSavesNothing => "v2/robust/saved-again",
    /// The index of a block is not checked.
    IndexOverflows => "v2/stream/flipped-bit",
    /// A record of an unknown kind panics.
    UnknownRecordPanics => "v2/robust/wrong-byte",
    /// After a foreign state the card loads nothing, not even after a reset.
    ForeignHurts => "v2/robust/foreign" | "v2/robust/reordered",
    /// Bytes after the end of a state panic.
    SecondStatePanics => "v2/robust/doubled" | "v2/robust/endless",
    /// A block out of turn panics.
    ReorderedPanics => "v2/robust/wrong-byte",
    /// Bytes after the end of a state are taken.
    TrailingAccepted => "v2/resuming/past-the-end",
    /// A load keeps the old memory where the state has zeros.
    LoadKeepsOldMemory => "v2/round-trip/over-another-state",
    /// The registers are not loaded.
    RegistersNotLoaded => "v2/round-trip/registers" | "v2/round-trip/last-load-counts" | "v2/stop-copy/second-session-registers" | "v2/stream/taken-or-refused",
    /// The last block of memory is lost at a load.
    LastBlockLost => "v2/round-trip/bytes",
    // PRE_COPY.
    /// The card does no DMA in PRE_COPY.
    PrecopyStopsDma => "v2/precopy/device-runs",
    /// STOP_COPY after PRE_COPY without a read gives only what changes.
    StopCopySkipsUnread => "v2/precopy/nothing-read",
    /// A second opt-in to MIG_PRECOPY_INFOv2 is refused.
    OptInOnce => "v2/precopy-info/opt-in-twice",
    /// The data file of an old session answers VFIO_MIG_GET_PRECOPY_INFO.
    OldFileAnswers => "v2/precopy-info/old-session",
    /// There are no initial bytes, only dirty ones.
    InitialAlwaysZero => "v2/precopy-info/initial-bytes",
    /// The initial bytes are 1000 too many, and never reach 0.
    InitialTooLarge => "v2/precopy-info/initial-bytes-available",
    /// The initial bytes are half of what is there.
    InitialHalved => "v2/precopy-info/temporary-end",
    /// Both counts are 0 once half of the initial bytes were read.
    PrecopyZeroTooEarly => "v2/precopy-info/temporary-end",
    /// The initial bytes grow with each query.
    InitialGrows => "v2/precopy-info/initial-bytes",
    /// The initial bytes start over without REINIT.
    InitialRises => "v2/precopy-changes/initial-bytes",
    /// The initial bytes start over without REINIT, though the user has opted in.
    ReinitNotTold => "v2/precopy-changes/reinit-is-told",
    /// REINIT is reported without the opt-in.
    ReinitWithoutOptIn => "v2/precopy-info/reinit-needs-opt-in",
    /// REINIT is always reported after the opt-in.
    ReinitAlways => "v2/precopy-changes/reinit-is-new-data",
    /// Half of the initial bytes count as dirty.
    DirtyFromTheStart => "v2/precopy-info/dirty-bytes",
    /// The dirty bytes never fall.
    DirtyNeverFalls => "v2/precopy-info/temporary-end",
    /// The dirty bytes do not show changes.
    DirtyIgnoresChanges => "v2/precopy-changes/counted",
    /// A read says the temporary end while the counts are not 0.
    TemporaryEndTooEarly => "v2/precopy-info/temporary-end" | "v2/precopy-info/estimate",
    /// A read at the temporary end returns 0 (mtty, qat and hisi_acc).
    TemporaryEndIsZero => "v2/precopy/temporary-end",
    /// The temporary end of PRE_COPY ends the stream.
    TemporaryEndIsFinal => "v2/precopy/temporary-end",
    /// What has changed in PRE_COPY is not sent.
    PrecopyForgetsChanges => "v2/precopy/late-change" | "v2/round-trip/registers-after-pre-copy",
    /// What changes in a session that was in PRE_COPY_P2P is not sent.
    P2pStopsTracking => "v2/p2p/back-to-pre-copy",
    /// STOP_COPY starts the stream over.
    StopCopyStartsOver => "v2/precopy/whole-state",
    /// Reads in PRE_COPY fail.
    PrecopyReadFails => "v2/precopy/whole-state",
    /// VFIO_MIG_GET_PRECOPY_INFO is not there.
    PrecopyInfoFails => "v2/precopy-info/mandatory",
    /// VFIO_MIG_GET_PRECOPY_INFO succeeds in STOP_COPY.
    PrecopyInfoInStopCopy => "v2/precopy-info/only-in-precopy",
    /// VFIO_MIG_GET_PRECOPY_INFO succeeds on a resuming data file.
    PrecopyInfoOnResuming => "v2/precopy-info/resuming",
    // MIG_DATA_SIZE.
    /// MIG_DATA_SIZE in STOP_COPY takes a byte from the stream.
    DataSizeTakesByte => "v2/data-size/session-goes-on",
    /// MIG_DATA_SIZE is 1000 times too small.
    DataSizeTooSmall => "v2/data-size/estimate",
    /// MIG_DATA_SIZE is always 0.
    DataSizeZero => "v2/data-size/estimate",
    /// MIG_DATA_SIZE fails in PRE_COPY.
    DataSizeFailsInPrecopy => "v2/data-size/every-state",
    /// MIG_DATA_SIZE fails but in STOP_COPY.
    DataSizeOnlyInStopCopy => "v2/data-size/every-state",
    // Reset.
    /// The twentieth reset fails.
    ResetsRunOut => "v2/reset/repeated",
    /// GET after a reset says the state before it.
    ResetKeepsState => "v2/reset/every-state",
    /// A reset leaves the device in STOP.
    ResetStops => "v2/reset/every-state",
    /// A reset keeps the registers.
    ResetKeepsRegisters => "v2/reset/registers",
    /// A reset keeps the contents once a state was loaded.
    ResetKeepsLoad => "v2/round-trip/reset-after-load",
    /// A reset is refused in STOP_COPY.
    ResetRefusedInStopCopy => "v2/reset/every-state",
    /// A reset is refused in RESUMING.
    ResetRefusedInResuming => "v2/resuming/abort",
    // The DMA log.
    /// The log takes pages twice as large as the hint.
    LogPageSizeDoubled => "v2/dma-logging/hinted-page-size",
    /// A report in other pages than those of the log is refused.
    LogReportPageSizeFixed => "v2/dma-logging/report-page-size",
    /// A start that is refused leaves a log running.
    LogRefusedStartRuns => "v2/dma-logging/refused-start",
    /// A stop without a log fails.
    LogStopsOnce => "v2/dma-logging/stop-again",
    /// The tenth start fails with ENOMEM.
    LogStartsRunOut => "v2/dma-logging/restarted-often",
    /// A report that is not on whole pages ends the log.
    LogEndsAtOddReport => "v2/dma-logging/odd-reports",
    /// Bits are one too high.
    LogShifted => "v2/dma-writes/bit-of-a-page",
    /// Bytes of the bitmap's words are in the wrong order.
    LogBigEndian => "v2/dma-writes/bit-of-a-page",
    /// Bits of the bitmap's bytes are in the wrong order.
    LogBitsReversed => "v2/dma-writes/bit-of-a-page",
    /// Bits are at the header's wrong formula.
    LogByHeadersFormula => "v2/dma-writes/bit-of-a-page",
    /// Bits count from address 0, not from the range.
    LogCountsFromZero => "v2/dma-writes/bit-of-a-page",
    /// A page of the log sets one bit, however small the asked pages are.
    LogNotReplicated => "v2/dma-writes/finer-report",
    /// Bits are by the log's page size, not the asked one.
    LogReportPageIgnored => "v2/dma-writes/coarser-report",
    /// Every other 32 pages are not logged.
    LogForgetsHighPages => "v2/dma-writes/all-are-logged",
    /// Only the first range is logged.
    LogForgetsSecondRange => "v2/dma-writes/several-ranges",
    /// A report does not clear the log.
    LogNeverCleared => "v2/dma-writes/report-clears",
    /// A report clears the log outside of its range.
    LogClearsAll => "v2/dma-writes/clears-only-its-range",
    /// A report clears bits that the user has set.
    LogClearsUsersBits => "v2/dma-logging/never-clears",
    /// A report sets all bits.
    LogSetsAllBits => "v2/dma-writes/nothing-else",
    /// A report sets a bit past its range.
    LogPastTheEnd => "v2/dma-logging/page-of-ranges",
    /// A second start succeeds.
    LogStartsTwice => "v2/dma-logging/second-start" | "v2/dma-writes/refused-second-start",
    /// A stop leaves the log running.
    LogNeverStops => "v2/dma-logging/not-enabled" | "v2/reset/log",
    /// A new log begins with the bits of the last one.
    LogSurvivesStop => "v2/dma-writes/new-log-is-empty",
    /// A report succeeds without a log.
    LogReportsWhenStopped => "v2/dma-logging/not-enabled",
    /// A log can be started in RUNNING only.
    LogOnlyInRunning => "v2/dma-logging/in-every-state" | "v2/dma-writes/in-precopy",
    /// PRE_COPY stops the log.
    PrecopyResetsLog => "v2/dma-writes/kept-over-states",
    /// A page size hint that is too large is refused.
    LogRefusesLargePages => "v2/dma-logging/any-hint",
    /// The reported page size is 0.
    LogPageSizeZero => "v2/dma-logging/selected-page-size",
    /// The reported page size is 64, which no report can have.
    LogPageSizeTiny => "v2/dma-logging/selected-page-size",
    /// A log of no range is started.
    LogOfNothing => "v2/dma-logging/no-ranges",
    /// Only the first range of a log is checked.
    LogRangesUnchecked => "v2/dma-logging/overlapping-ranges" | "v2/dma-logging/too-many-ranges",
    /// A log of a misaligned range is started.
    LogMisalignedAccepted => "v2/dma-logging/misaligned-range",
    // Probing and the requests as bytes.
    /// A SET of an invalid state writes nothing back.
    RawFailedSetNotWritten => "v2/state/failed-set-writes-back",
    /// VFIO_MIG_GET_PRECOPY_INFO leaves flags alone after the opt-in.
    RawFlagsNotWritten => "v2/precopy-info/flags-after-opt-in",
    /// VFIO_MIG_GET_PRECOPY_INFO clears flags without the opt-in.
    RawFlagsCleared => "v2/precopy-info/flags-without-opt-in",
    /// PROBE denies MIG_DEVICE_STATE.
    ProbeDeniesState => "v2/feature/probe",
    /// PROBE denies DMA_LOGGING_REPORT.
    ProbeDeniesReport => "v2/feature/probe" | "v2/dma-logging/probe",
    /// PROBE of a state change stops the device.
    ProbeActs => "v2/feature/probe-changes-nothing",
    /// PROBE fails without data.
    ProbeNeedsData => "v2/feature/probe-without-data",
    /// PROBE finds MIG_PRECOPY_INFOv2 without PRE_COPY.
    AbsentFeatureFound => "v2/feature/absent",
    /// GET and SET at once succeed.
    RawBothDirections => "v2/feature/get-and-set",
    /// A request without GET, SET and PROBE succeeds.
    RawNoDirection => "v2/feature/no-direction",
    /// PROBE finds directions that a feature does not have.
    RawProbesEverything => "v2/feature/wrong-direction",
    /// Unknown features succeed.
    RawUnknownFeature => "v2/feature/unknown-index",
    /// Unknown features fail with EINVAL.
    RawUnknownIsEinval => "v2/feature/unknown-index",
    /// Unknown flags are ignored.
    RawUnknownFlags => "v2/feature/undefined-flags",
    /// An argsz too small for the data is ignored.
    RawShortArgsz => "v2/feature/argsz-below-the-data",
    /// An argsz smaller than the head is ignored.
    RawTinyArgsz => "v2/feature/argsz-below-the-head",
    /// A larger argsz than necessary is refused.
    RawLongArgszRefused => "v2/feature/larger-argsz",
    /// SET of unknown states succeeds.
    RawUnknownState => "v2/state/unknown-states-are-refused",
    /// GET of the state writes nothing back.
    RawStateNotWritten => "v2/state/get-returns-no-fd",
    /// Every refusal is EFAULT.
    RawErrnos => "v2/feature/undefined-flags",
    /// VFIO_MIG_GET_PRECOPY_INFO ignores an argsz that is too small.
    RawPrecopyArgsz => "v2/precopy-info/argsz",
    /// VFIO_MIG_GET_PRECOPY_INFO refuses a larger argsz than necessary.
    RawPrecopyLongArgsz => "v2/precopy-info/argsz",
    // Regions.
    /// A read of a region in RESUMING resets the card.
    RegionReadResets => "v2/regions/reads-in-every-state" | "v2/stop/region-access",
    /// A read of configuration space in STOP_COPY takes a byte from the stream.
    ConfigReadTakesByte => "v2/regions/reads-during-a-save" | "v2/stop-copy/behaves-as-in-stop",
    /// A mappable area passes the end of its region.
    AreaPastTheEnd => "v2/regions/mappable-areas",
    /// A region that the device does not have is described.
    UnknownRegionFound => "v2/regions/unknown-index",
    /// A read past the end of a region succeeds.
    ReadPastTheEnd => "v2/regions/access-past-the-end",
}
