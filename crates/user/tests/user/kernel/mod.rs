//! Devices of a real kernel: the sample driver `mtty` and a network card at vfio-pci, as the lab's machines have them.
//!
//! None of these can run outside such a machine: `lab/run exec -- <this program, linked statically> --ignored
//! --test-threads=1 kernel::group`. The tests share two devices, so they run one at a time.

mod behind_iommu;
mod cdev;
mod dirty;
mod group;
mod mock;
mod model;
mod mtty;
mod pci;
