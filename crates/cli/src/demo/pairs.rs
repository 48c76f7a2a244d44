//! The devices that the demo migrates between: a source and a destination each.

use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::model_text::ModelText;
use crate::target::Target;
use crate::usage::WrongValue;

/// A device and its destination.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pair {
    /// A model in each host.
    Inside(ModelText),
    /// A model in two servers that the demo starts.
    Served(ModelText),
    /// The devices of two running servers, at these sockets.
    Running(PathBuf, PathBuf),
}

impl Pair {
    /// The TARGETs of source and destination.
    pub(super) fn targets(&self) -> (String, String) {
        match self {
            Pair::Inside(model) | Pair::Served(model) => (format!("model:{model}"), format!("model:{model}")),
            Pair::Running(source, destination) => (
                Target::VfioUser(source.clone()).to_string(),
                Target::VfioUser(destination.clone()).to_string(),
            ),
        }
    }

    /// Its name for people.
    pub(super) fn name(&self) -> String {
        match self {
            Pair::Inside(model) | Pair::Served(model) => model.to_string(),
            Pair::Running(source, destination) => {
                format!("{} to {}", source.display(), destination.display())
            }
        }
    }
}

/// A device as it is given: any TARGET, or a model that lacks its image, which the demo makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DeviceArgument {
    Model(ModelText),
    Other(Target),
}

impl DeviceArgument {
    /// Parses a device of the command line.
    pub(super) fn parse(text: &str) -> Result<DeviceArgument, WrongValue> {
        match text.strip_prefix("model:") {
            Some(model) => ModelText::parse(model).map(DeviceArgument::Model),
            None => text.parse().map(DeviceArgument::Other),
        }
    }
}

/// Pairs devices with their destinations. Models have none; those of running servers are in the same order.
pub(super) fn pair(
    devices: &[DeviceArgument],
    destinations: &[Target],
    in_process: bool,
) -> Result<Vec<Pair>, Failure> {
    let mut destinations = destinations.iter();
    let mut pairs = Vec::new();
    for device in devices {
        let device = match device {
            DeviceArgument::Model(model) => {
                pairs.push(if in_process {
                    Pair::Inside(model.clone())
                } else {
                    Pair::Served(model.clone())
                });
                continue;
            }
            DeviceArgument::Other(device) => device,
        };
        pairs.push(match device {
            Target::VfioUser(_) if in_process => {
                return Err(Failure::usage(format!(
                    "'{device}' is in its server's process: --in-process is for models"
                )));
            }
            Target::VfioUser(source) => match destinations.next() {
                Some(Target::VfioUser(destination)) => Pair::Running(source.clone(), destination.clone()),
                Some(other) => return Err(not_movable(other)),
                None => {
                    return Err(Failure::usage(format!(
                        "'{device}' is a single device: the demo needs a second one as the destination"
                    ))
                    .hint("serve the same model at a second socket, and give --destination vfio-user:SOCKET"));
                }
            },
            Target::Model(..) | Target::Group(_) | Target::Cdev(_) | Target::Host(_) => {
                return Err(not_movable(device));
            }
        });
    }
    if let Some(destination) = destinations.next() {
        return Err(Failure::usage(format!(
            "'{destination}' has no vfio-user:SOCKET in --device to migrate from: the demo itself serves a model at both ends"
        ))
        .hint("omit --destination, or give --device vfio-user:SOCKET too"));
    }
    check_distinct(&pairs)?;
    Ok(pairs)
}

fn check_distinct(pairs: &[Pair]) -> Result<(), Failure> {
    let mut seen: Vec<PathBuf> = Vec::new();
    for pair in pairs {
        let Pair::Running(source, destination) = pair else { continue };
        let [real_source, real_destination] = [source, destination].map(|path| real(path));
        if real_source == real_destination {
            return Err(Failure::usage(format!(
                "'vfio-user:{}' cannot be migrated to itself",
                source.display()
            ))
            .hint("serve the same model at a second socket, and give that as --destination"));
        }
        for (given, real) in [(source, real_source), (destination, real_destination)] {
            if seen.contains(&real) {
                return Err(Failure::usage(format!("'vfio-user:{}' is given twice", given.display()))
                    .hint("a server has one device: serve each at a socket of its own"));
            }
            seen.push(real);
        }
    }
    Ok(())
}

/// The path without links, of a socket that exists.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

fn not_movable(target: &Target) -> Failure {
    Failure::usage(format!("the demo migrates models, and '{target}' is not one"))
        .hint("give --device model:accel, with settings such as model:accel?state=64MiB&rate=16MiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(texts: &[&str]) -> Vec<Target> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn given(texts: &[&str]) -> Vec<DeviceArgument> {
        texts.iter().map(|text| DeviceArgument::parse(text).unwrap()).collect()
    }

    #[test]
    fn destinations_go_to_the_running_servers_in_order() {
        let devices = given(&["vfio-user:a", "model:serial", "vfio-user:b"]);
        let pairs = pair(&devices, &targets(&["vfio-user:c", "vfio-user:d"]), false).unwrap();
        let running = |source: &str, destination: &str| Pair::Running(source.into(), destination.into());
        let serial = Pair::Served(ModelText::parse("serial").unwrap());
        assert_eq!(pairs, [running("a", "c"), serial, running("b", "d")]);
    }

    #[test]
    fn the_same_model_can_be_given_more_than_once_and_a_server_cannot() {
        let twice = given(&["model:accel", "model:accel"]);
        assert_eq!(pair(&twice, &[], true).unwrap().len(), 2);
        for (devices, destinations, again) in [
            (["vfio-user:a", "vfio-user:a"], ["vfio-user:b", "vfio-user:c"], "vfio-user:a"),
            (["vfio-user:a", "vfio-user:b"], ["vfio-user:c", "vfio-user:c"], "vfio-user:c"),
            (["vfio-user:a", "vfio-user:b"], ["vfio-user:b", "vfio-user:c"], "vfio-user:b"),
        ] {
            let failure = pair(&given(&devices), &targets(&destinations), false).unwrap_err();
            assert_eq!(failure.message(), format!("'{again}' is given twice"));
        }
    }
}
