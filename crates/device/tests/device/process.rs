//! The part that all programs of these tests have in common as a [`Process`](whimbrel_device::Process).

/// The methods of a `Process` whose memory and data files are those of its field `memory`.
macro_rules! with_memory {
    () => {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), whimbrel_device::Fault> {
            self.memory.read(address, buffer)
        }

        fn write(&mut self, address: u64, data: &[u8]) -> Result<(), whimbrel_device::Fault> {
            self.memory.write(address, data)
        }

        fn install(&mut self, file: whimbrel_device::DataFile) -> Result<i32, whimbrel_device::Errno> {
            self.memory.install(file)
        }

        fn uninstall(&mut self, fd: i32) {
            self.memory.uninstall(fd);
        }
    };
}

pub(crate) use with_memory;
