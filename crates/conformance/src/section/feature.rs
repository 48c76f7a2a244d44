//! VFIO_DEVICE_FEATURE: its checks in the kernel's order, for every feature of migration, as raw bytes.

use whimbrel_protocol::{Errno, MigrationFlags, State};
use whimbrel_uapi::dma_logging::{DeviceFeatureDmaLoggingControl, DeviceFeatureDmaLoggingReport};
use whimbrel_uapi::feature::{DeviceFeature, FEATURE_MASK, Feature, FeatureFlags};
use whimbrel_uapi::migration::{DeviceFeatureMigDataSize, DeviceFeatureMigState, DeviceFeatureMigration};

use crate::bench::Bench;
use crate::case::{Case, HEADER, Need};
use crate::outcome::{Outcome, check, equal, inconclusive, refused, success};
use crate::subject::Subject;

const RAW: &[Need] = &[Need::V2, Need::Raw];
const HEAD: u32 = size_of::<DeviceFeature>() as u32;
/// An index that no header knows.
const UNKNOWN: u32 = 0xffff;
/// The lowest bit of the flags without a meaning.
const UNDEFINED: u32 = 1 << 19;
/// Data that no driver side may write to.
const GUARD: u8 = 0xa5;

pub(crate) const CASES: &[Case] = &[
    Case::must(
        "v2/feature/stop-copy-is-set",
        "Support for additional states is indicated via the flags field; at least VFIO_MIGRATION_STOP_COPY must be set.",
        stop_copy_is_set,
    )
    .looks(),
    Case::must(
        "v2/feature/defined-flags",
        "Other combinations of flags have behavior to be defined in the future.",
        defined_flags,
    )
    .looks(),
    Case::must(
        "v2/feature/probe",
        "Probing a feature will return success if the feature is supported and all of the optionally indicated GET/SET \
         methods are supported.",
        probe,
    )
    .looks()
    .needs(&[Need::V2]),
    Case::must(
        "v2/feature/probe-without-data",
        "The data portion is not required for probing.",
        probe_without_data,
    )
    .looks()
    .needs(RAW),
    Case::must(
        "v2/feature/get-and-set",
        "GET and SET are mutually exclusive, except for use with PROBE.",
        get_and_set,
    )
    .looks()
    .needs(RAW),
    Case::kernel(
        "v2/feature/probe-changes-nothing",
        "A PROBE does nothing, whatever data follows (vfio_check_feature() in include/linux/vfio.h).",
        probe_changes_nothing,
    )
    .needs(RAW),
    Case::kernel(
        "v2/feature/argsz-below-the-head",
        "An argsz below 8 is EINVAL, before all else (vfio_ioctl_device_feature() in drivers/vfio/vfio_main.c).",
        argsz_below_the_head,
    )
    .looks()
    .needs(RAW),
    Case::kernel(
        "v2/feature/undefined-flags",
        "A flag beyond PROBE is EINVAL, also with an unknown index (vfio_ioctl_device_feature() in drivers/vfio/vfio_main.c).",
        undefined_flags,
    )
    .looks()
    .needs(RAW),
    Case::kernel(
        "v2/feature/unknown-index",
        "An unknown index is ENOTTY, in any direction (vfio_ioctl_device_feature() in drivers/vfio/vfio_main.c).",
        unknown_index,
    )
    .looks()
    .needs(RAW),
    Case::kernel(
        "v2/feature/wrong-direction",
        "A direction that a feature does not have is EINVAL, also with PROBE (vfio_check_feature() in include/linux/vfio.h).",
        wrong_direction,
    )
    .looks()
    .needs(RAW),
    Case::kernel(
        "v2/feature/no-direction",
        "Without PROBE, GET and SET a request is EINVAL (vfio_check_feature() in include/linux/vfio.h).",
        no_direction,
    )
    .looks()
    .needs(RAW),
    Case::kernel(
        "v2/feature/argsz-below-the-data",
        "An argsz without room for a feature's data is EINVAL (vfio_check_feature() in include/linux/vfio.h).",
        argsz_below_the_data,
    )
    .needs(RAW),
    Case::kernel(
        "v2/feature/larger-argsz",
        "An argsz beyond a feature's data is fine, and nothing is written past the data (vfio_check_feature() in \
         include/linux/vfio.h).",
        larger_argsz,
    )
    .needs(RAW),
    Case::kernel(
        "v2/feature/absent",
        "A feature that the device does not have is ENOTTY; MIG_PRECOPY_INFOv2 without PRE_COPY is EINVAL \
         (vfio_ioctl_device_feature() in drivers/vfio/vfio_main.c).",
        absent,
    )
    .looks()
    .needs(RAW),
];

/// A feature of migration: its directions, and the least data of a GET or SET, in bytes.
struct Form {
    feature: Feature,
    directions: FeatureFlags,
    data: usize,
}

const BOTH: FeatureFlags = FeatureFlags::GET.union(FeatureFlags::SET);

const FORMS: [Form; 7] = [
    form(Feature::Migration, FeatureFlags::GET, size_of::<DeviceFeatureMigration>()),
    form(Feature::MigDeviceState, BOTH, size_of::<DeviceFeatureMigState>()),
    form(Feature::MigDataSize, FeatureFlags::GET, size_of::<DeviceFeatureMigDataSize>()),
    form(Feature::MigPrecopyInfoV2, FeatureFlags::SET, 0),
    form(Feature::DmaLoggingStart, FeatureFlags::SET, size_of::<DeviceFeatureDmaLoggingControl>()),
    form(Feature::DmaLoggingStop, FeatureFlags::SET, 0),
    form(Feature::DmaLoggingReport, FeatureFlags::GET, size_of::<DeviceFeatureDmaLoggingReport>()),
];

const fn form(feature: Feature, directions: FeatureFlags, data: usize) -> Form {
    Form { feature, directions, data }
}

impl Form {
    fn index(&self) -> u32 {
        u32::from(self.feature.number())
    }

    /// Returns whether the device has the feature.
    fn is_present(&self, bench: &Bench) -> bool {
        match self.feature {
            Feature::MigDataSize => bench.features.has(Need::DataSize),
            Feature::MigPrecopyInfoV2 => bench.features.has(Need::PrecopyInfoV2),
            Feature::DmaLoggingStart | Feature::DmaLoggingStop | Feature::DmaLoggingReport => {
                bench.features.has(Need::DmaLogging)
            }
            _ => true,
        }
    }
}

/// Returns the features that the device has.
fn present(bench: &Bench) -> Vec<&'static Form> {
    FORMS.iter().filter(|form| form.is_present(bench)).collect()
}

/// Makes a request with these flags, which must fail. Its data asks for STOP, or for nothing.
fn is_refused(subject: &mut Subject, argsz: u32, flags: u32, errnos: &[Errno]) -> Outcome {
    let mut data = [0; 32];
    if flags & FEATURE_MASK == u32::from(Feature::MigDeviceState.number()) {
        data[..4].copy_from_slice(&State::Stop.number().to_ne_bytes());
    }
    let length = (argsz.saturating_sub(HEAD) as usize).min(data.len());
    let result = subject.feature(argsz, flags, &mut data[..length])?;
    refused(format_args!("VFIO_DEVICE_FEATURE with flags {flags:#x} and argsz {argsz}"), errnos, result)
}

fn stop_copy_is_set(bench: &mut Bench) -> Outcome {
    let flags = bench.subject.flags();
    check(flags.contains(MigrationFlags::STOP_COPY), "STOP_COPY in the flags", format_args!("{flags:?}"))
}

/// The header defines STOP_COPY alone and with the other two, one or both, and leaves other flags to later headers. A device
/// that has one is as good as its own header, which this suite does not know.
fn defined_flags(bench: &mut Bench) -> Outcome {
    judge_flags(bench.subject.flags())
}

fn judge_flags(flags: MigrationFlags) -> Outcome {
    check(
        flags.contains(MigrationFlags::STOP_COPY),
        "STOP_COPY, alone or with other flags",
        format_args!("flags {:#x}", flags.bits()),
    )?;
    if !MigrationFlags::all().contains(flags) {
        return inconclusive(format_args!(
            "flags {:#x} has bits that {HEADER} does not define: of a later header, or a bug",
            flags.bits()
        ));
    }
    Ok(())
}

fn probe(bench: &mut Bench) -> Outcome {
    for form in present(bench) {
        for directions in [FeatureFlags::empty(), FeatureFlags::GET, FeatureFlags::SET, BOTH] {
            let found = bench.subject.probe(form.feature, directions)?;
            let expected = form.directions.contains(directions);
            equal(format_args!("PROBE of {} with {directions:?} succeeds", form.feature), expected, found)?;
        }
    }
    Ok(())
}

fn probe_without_data(bench: &mut Bench) -> Outcome {
    for form in present(bench) {
        for directions in [FeatureFlags::empty(), form.directions] {
            let flags = form.index() | (FeatureFlags::PROBE | directions).bits();
            let result = bench.subject.feature(HEAD, flags, &mut [])?;
            success(format_args!("PROBE of {} with argsz {HEAD}", form.feature), result)?;
        }
    }
    Ok(())
}

fn get_and_set(bench: &mut Bench) -> Outcome {
    for form in present(bench) {
        let argsz = HEAD + form.data as u32;
        is_refused(&mut bench.subject, argsz, form.index() | BOTH.bits(), &[Errno::EINVAL])?;
    }
    // It is checked before the index.
    is_refused(&mut bench.subject, HEAD, UNKNOWN | BOTH.bits(), &[Errno::EINVAL])?;
    let index = u32::from(Feature::MigDeviceState.number());
    let result = bench.subject.feature(HEAD, index | (BOTH | FeatureFlags::PROBE).bits(), &mut [])?;
    success("PROBE of MIG_DEVICE_STATE with GET and SET", result)
}

fn probe_changes_nothing(bench: &mut Bench) -> Outcome {
    let mut data = [0; 8];
    data[..4].copy_from_slice(&State::Stop.number().to_ne_bytes());
    let asked = data;
    let index = u32::from(Feature::MigDeviceState.number());
    let flags = index | (FeatureFlags::PROBE | FeatureFlags::SET).bits();
    let result = bench.subject.feature(HEAD + 8, flags, &mut data)?;
    success("PROBE of MIG_DEVICE_STATE with SET", result)?;
    equal("the data after a PROBE", asked, data)?;
    bench.subject.is_in(State::Running)
}

fn argsz_below_the_head(bench: &mut Bench) -> Outcome {
    for argsz in [0, 1, HEAD - 1] {
        for flags in [u32::from(Feature::Migration.number()) | FeatureFlags::GET.bits(), UNKNOWN] {
            is_refused(&mut bench.subject, argsz, flags, &[Errno::EINVAL])?;
        }
    }
    Ok(())
}

fn undefined_flags(bench: &mut Bench) -> Outcome {
    for bit in 19..32 {
        for index in [u32::from(Feature::Migration.number()), UNKNOWN] {
            let flags = index | (FeatureFlags::PROBE | FeatureFlags::GET).bits() | 1 << bit;
            is_refused(&mut bench.subject, HEAD + 8, flags, &[Errno::EINVAL])?;
        }
    }
    is_refused(&mut bench.subject, HEAD, UNDEFINED, &[Errno::EINVAL])
}

fn unknown_index(bench: &mut Bench) -> Outcome {
    let directions = [
        FeatureFlags::empty(),
        FeatureFlags::GET,
        FeatureFlags::SET,
        FeatureFlags::PROBE,
        FeatureFlags::all(),
    ];
    for index in [UNKNOWN, 0x8000, 1000] {
        for directions in directions {
            is_refused(&mut bench.subject, HEAD, index | directions.bits(), &[Errno::ENOTTY])?;
        }
    }
    Ok(())
}

fn wrong_direction(bench: &mut Bench) -> Outcome {
    for form in present(bench) {
        for direction in [FeatureFlags::GET, FeatureFlags::SET] {
            if form.directions.contains(direction) {
                continue;
            }
            for probe in [FeatureFlags::empty(), FeatureFlags::PROBE] {
                let flags = form.index() | (direction | probe).bits();
                is_refused(&mut bench.subject, HEAD + form.data as u32, flags, &[Errno::EINVAL])?;
            }
        }
    }
    Ok(())
}

fn no_direction(bench: &mut Bench) -> Outcome {
    for form in present(bench) {
        is_refused(&mut bench.subject, HEAD + form.data as u32, form.index(), &[Errno::EINVAL])?;
    }
    Ok(())
}

fn argsz_below_the_data(bench: &mut Bench) -> Outcome {
    for form in present(bench).into_iter().filter(|form| form.data > 0) {
        for direction in form.directions.iter() {
            for missing in [1, form.data as u32] {
                let argsz = HEAD + form.data as u32 - missing;
                is_refused(&mut bench.subject, argsz, form.index() | direction.bits(), &[Errno::EINVAL])?;
            }
        }
    }
    bench.subject.is_in(State::Running)
}

fn larger_argsz(bench: &mut Bench) -> Outcome {
    const LARGER: [u32; 3] = [1, 8, 4088];
    for form in [&FORMS[0], &FORMS[1], &FORMS[2]] {
        if !form.is_present(bench) {
            continue;
        }
        for larger in LARGER {
            let mut data = vec![GUARD; form.data + larger as usize];
            let flags = form.index() | FeatureFlags::GET.bits();
            let result = bench.subject.feature(HEAD + data.len() as u32, flags, &mut data)?;
            success(format_args!("GET of {} with {larger} bytes more than its data", form.feature), result)?;
            check(
                data[form.data..].iter().all(|byte| *byte == GUARD),
                format_args!("GET of {} writes {} bytes", form.feature, form.data),
                "it writes more",
            )?;
        }
    }
    let mut data = [0; 24];
    data[..4].copy_from_slice(&State::Running.number().to_ne_bytes());
    let flags = u32::from(Feature::MigDeviceState.number()) | FeatureFlags::SET.bits();
    let result = bench.subject.feature(HEAD + 24, flags, &mut data)?;
    success("SET of RUNNING in RUNNING with 16 bytes more than its data", result)?;
    bench.subject.is_in(State::Running)
}

fn absent(bench: &mut Bench) -> Outcome {
    let absent: Vec<&Form> = FORMS.iter().filter(|form| !form.is_present(bench)).collect();
    for form in absent {
        // A kernel before MIG_PRECOPY_INFOv2 does not know the index.
        let errnos: &[Errno] = match form.feature {
            Feature::MigPrecopyInfoV2 => &[Errno::EINVAL, Errno::ENOTTY],
            _ => &[Errno::ENOTTY],
        };
        for directions in [FeatureFlags::PROBE, FeatureFlags::PROBE | form.directions] {
            is_refused(&mut bench.subject, HEAD, form.index() | directions.bits(), errnos)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Stop;

    #[test]
    fn flags_of_a_later_header_are_not_judged_and_those_without_stop_copy_fail() {
        let known = MigrationFlags::all();
        for others in [MigrationFlags::empty(), MigrationFlags::P2P, MigrationFlags::PRE_COPY, known] {
            assert_eq!(judge_flags(MigrationFlags::STOP_COPY | others), Ok(()));
        }
        let later = MigrationFlags::from_bits_retain(1 << 8);
        assert!(matches!(judge_flags(known | later), Err(Stop::Inconclusive(why)) if why.contains("0x107")));
        for without in [MigrationFlags::empty(), MigrationFlags::P2P, later, MigrationFlags::PRE_COPY | later]
        {
            assert!(matches!(judge_flags(without), Err(Stop::Failed { .. })), "{without:?}");
        }
    }
}
