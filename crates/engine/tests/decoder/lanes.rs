//! The streams of a source with several connections, put together as the one stream that they stand for.

use super::Said;

const STRIPE: u64 = 2_097_152;

/// Puts the streams of a source together, by the marks: that of the control connection, and those of lane 1 and so on. Checks
/// what goes over which.
pub(crate) fn merged(control: &[Said], lanes: &[Vec<Said>]) -> Result<Vec<Said>, String> {
    let count = lanes.len() as u64 + 1;
    let mut rest: Vec<std::slice::Iter<'_, Said>> = lanes.iter().map(|said| said.iter()).collect();
    for (lane, said) in (1..).zip(&mut rest) {
        match said.next() {
            Some(Said::Join(join)) if join["purpose"]["lane"] == lane => {}
            other => return Err(format!("lane {lane} begins with {other:?}")),
        }
    }
    let (mut merged, mut marks, mut ends) = (Vec::new(), 0, false);
    for said in control {
        check(said, 0, count)?;
        let needs_mark = match said {
            Said::Round { .. } => true,
            Said::DeviceEnd { .. } => !std::mem::replace(&mut ends, true),
            _ => false,
        };
        if needs_mark {
            marks += 1;
            for (lane, said) in (1..).zip(&mut rest) {
                loop {
                    match said.next() {
                        Some(Said::Mark { number }) if *number == marks => break,
                        Some(said) if !matches!(said, Said::Mark { .. }) => {
                            check(said, lane, count)?;
                            merged.push(said.clone());
                        }
                        other => return Err(format!("{other:?} for mark {marks} of lane {lane}")),
                    }
                }
            }
        }
        merged.push(said.clone());
    }
    match rest.iter_mut().find_map(Iterator::next) {
        Some(said) if ends => Err(format!("{} after the last mark", said.name())),
        _ => Ok(merged),
    }
}

/// Checks that a message may go over a lane.
fn check(said: &Said, lane: u64, lanes: u64) -> Result<(), String> {
    let is_right = match said {
        Said::Compressed(said) => return check(said, lane, lanes),
        Said::Memory { address, data } => has_memory(*address, data.len() as u64, lane, lanes),
        Said::MemoryZero { address, length } => has_memory(*address, *length, lane, lanes),
        Said::DeviceState { device, .. } | Said::Setup { device, .. } => u64::from(*device) % lanes == lane,
        Said::Padding(_) => true,
        Said::Mark { .. } => false,
        _ => lane == 0,
    };
    if is_right { Ok(()) } else { Err(format!("{} on lane {lane} of {lanes}", said.name())) }
}

fn has_memory(address: u64, length: u64, lane: u64, lanes: u64) -> bool {
    address / STRIPE % lanes == lane && address / STRIPE == (address + length - 1) / STRIPE
}
