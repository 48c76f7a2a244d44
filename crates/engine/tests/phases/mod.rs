//! The phases of both machines, each listed once.
//!
//! A phase that is not listed does not compile, and each one in the list has to be met by every table of the tests: by each
//! fault in the simulation, and by a cancel in the migrations.

use whimbrel_engine::proto::{destination, source};

/// Makes a list of phases and their names, and a function that returns a phase's place in it.
macro_rules! phases {
    ($list:ident, $place:ident, $module:ident: $($phase:ident $(($type:ident :: $inner:ident))?),+ $(,)?) => {
        /// The phases, with their names.
        pub(crate) const $list: &[($module::Phase, &str)] = &[$((
            $module::Phase::$phase $(($module::$type::$inner))?,
            concat!(stringify!($phase) $(, "(", stringify!($inner), ")")?),
        )),+];

        /// Returns the place of a phase in the list.
        pub(crate) fn $place(phase: $module::Phase) -> usize {
            // Nothing but the patterns of the list: a phase that it lacks does not compile.
            match phase {
                $($module::Phase::$phase $(($module::$type::$inner))? => {})+
            }
            $list.iter().position(|(listed, _)| *listed == phase).expect("every pattern is of a phase in the list")
        }
    };
}

phases!(
    SOURCE, source_place, source:
    Hello,
    Table,
    Lanes,
    Precopy,
    RoundQuery,
    RoundSend,
    RoundEnd,
    Ping,
    RoundLeft,
    RoundMemoryLeft,
    Slow,
    Broken,
    Reconnect,
    Join,
    Resend,
    Record,
    Pause,
    Quiesce,
    Stop,
    Rest,
    End,
    Committed,
    Release,
    Settle(Then::Back),
    Settle(Then::Park),
    Settle(Then::Release),
    Back(Back::Query),
    Back(Back::Quiesce),
    Back(Back::Run),
    Back(Back::Reset),
    Back(Back::Owner),
    Back(Back::Tell),
    Park,
    Over,
);

phases!(
    DESTINATION, destination_place, destination:
    Hello,
    Table,
    Resume,
    Load,
    RoundEnd,
    Broken,
    Await,
    Rejoin,
    Finish,
    Inspect,
    Ready,
    Quiesce,
    Start,
    Run,
    Settle,
    Record,
    Reset,
    Verify,
    Tell,
    Over,
);
