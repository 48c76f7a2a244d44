//! VFIO_USER_REGION_WRITE_MULTI: several writes in one message.

use whimbrel_user::Errno;
use whimbrel_vfio_user::message::WriteOne;
use whimbrel_vfio_user::{Client, ClientOptions};

use super::board::{BROKEN, board};

fn write(offset: u64, data: &[u8]) -> WriteOne {
    WriteOne::new(0, offset, data).unwrap()
}

/// With several writes in a message, and with a message for each.
fn options() -> [ClientOptions; 2] {
    [true, false].map(|write_multiple| {
        let capabilities = Client::capabilities().write_multiple(write_multiple);
        ClientOptions::default().capabilities(capabilities)
    })
}

#[test]
fn writes_are_made_in_their_order_however_many_there_are() {
    for options in options() {
        let (client, written) = board(&options);
        assert_eq!(client.agreed().write_multiple, options.capabilities.write_multiple);
        let writes: Vec<WriteOne> = (0..1000_u64)
            .map(|number| write(number, &number.to_le_bytes()[..=number as usize % 8]))
            .collect();
        assert_eq!(client.write_multiple(&writes).unwrap(), 1000);
        let expected: Vec<(u64, Vec<u8>)> =
            writes.iter().map(|write| (write.offset(), write.data().to_vec())).collect();
        assert_eq!(*written.lock(), expected);
        assert_eq!(client.write_multiple(&[]).unwrap(), 0);
    }
}

#[test]
fn a_write_that_fails_is_the_one_behind_those_that_were_made() {
    for options in options() {
        // In the first message, as its first, and in a later one.
        for broken in [1, 5, 170, 340, 399] {
            let (client, written) = board(&options);
            let mut writes: Vec<WriteOne> = (0..400).map(|at| write(at, b"a")).collect();
            writes[broken] = write(BROKEN, b"b");
            assert_eq!(client.write_multiple(&writes).unwrap(), broken);
            assert_eq!(written.lock().len(), broken);
            writes[0] = write(BROKEN, b"b");
            assert_eq!(client.write_multiple(&writes).unwrap_err().errno(), Some(Errno::EIO));
            assert_eq!(written.lock().len(), broken);
        }
    }
}
