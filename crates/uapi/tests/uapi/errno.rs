//! Error numbers and their names.

use whimbrel_uapi::Errno;

#[test]
fn every_number_from_1_to_the_largest_is_an_errno_and_no_other_is() {
    for code in 1..=i32::from(Errno::MAX) {
        assert_eq!(Errno::new(code).map(Errno::raw_os_error), Some(code));
    }
    for code in [i32::MIN, -22, -1, 0, 4096, 0x1_0016, i32::MAX] {
        assert_eq!(Errno::new(code), None, "{code}");
        assert!(Errno::try_from(code.cast_unsigned()).is_err(), "{code}");
    }
}

#[test]
fn a_name_leads_to_its_number_and_back() {
    let named = (1..=133).filter_map(Errno::new).filter(|errno| errno.name().is_some());
    assert_eq!(named.clone().count(), 131, "asm-generic/errno.h leaves out 41 and 58");
    for errno in named {
        assert_eq!(errno.name().map(str::parse), Some(Ok(errno)));
    }
    assert_eq!("EWOULDBLOCK".parse(), Ok(Errno::EAGAIN));
    assert_eq!("ENOTSUP".parse(), Ok(Errno::EOPNOTSUPP));
    for text in ["", "einval", "EINVAL ", "22", "errno 134"] {
        assert!(text.parse::<Errno>().is_err(), "{text:?}");
    }
}

#[test]
fn an_errno_reads_as_the_system_writes_it() {
    let system = std::io::Error::from_raw_os_error(Errno::EOPNOTSUPP.raw_os_error()).to_string();
    assert!(system.starts_with("Operation not supported"), "{system}");
    assert_eq!(Errno::EOPNOTSUPP.to_string(), "EOPNOTSUPP: Operation not supported");
    let unnamed = Errno::new(524).expect("a number");
    assert_eq!((unnamed.to_string().as_str(), unnamed.name()), ("errno 524", None));
}
