//! Objects and registrations.

use crate::common::{ALL, Rig, SIZE};
use engine::fabric::{Access, Error, Fabric as _, Grid, Memory};
use engine::id::PortId;

#[test]
fn objects_in_use_are_busy_and_ids_are_never_used_again() {
    let mut rig = Rig::ideal();
    let (end, buf, mr) = (rig.pair.ends[0], rig.bufs[0], rig.mrs[0]);
    rig.pair.call(0, |f| {
        assert_eq!(f.free(buf), Err(Error::Busy("buffer")));
        assert_eq!(f.destroy_cq(end.send_cq), Err(Error::Busy("completion queue")));
        f.deregister(mr.id).unwrap();
        assert!(matches!(f.deregister(mr.id), Err(Error::NoSuch(_))));
        f.free(buf).unwrap();
        assert!(matches!(f.free(buf), Err(Error::NoSuch(_))));
        f.destroy_qp(end.qp).unwrap();
        assert!(matches!(f.destroy_qp(end.qp), Err(Error::NoSuch(_))));
        f.destroy_cq(end.send_cq).unwrap();
        f.destroy_cq(end.recv_cq).unwrap();
        let next = f.alloc(Memory::Host, Grid::bytes(64)).unwrap();
        assert_ne!(next, buf);
        f.free(next).unwrap();
    });
    assert_eq!(rig.pair.fabrics.host_ref(0).objects(), Default::default());
    rig.run();
}

#[test]
fn registrations_need_sensible_rights_and_ranges() {
    let mut rig = Rig::ideal();
    let buf = rig.bufs[0];
    let wrong = Access { local_write: false, ..Access::REMOTE_WRITE };
    rig.pair.call(0, |f| {
        let port = PortId(0);
        assert!(matches!(f.register(port, buf, 0..64, wrong), Err(Error::Invalid { .. })));
        assert!(matches!(f.register(port, buf, 0..SIZE + 1, ALL), Err(Error::Invalid { .. })));
        assert!(matches!(f.register(port, buf, 64..64, ALL), Err(Error::Invalid { .. })));
        assert!(matches!(f.register(PortId(1), buf, 0..64, ALL), Err(Error::NoSuch("port"))));
        let part = f.register(port, buf, 4096..8192, ALL).unwrap();
        assert_eq!((part.addr, part.len), (rig.mrs[0].addr + 4096, 4096));
    });
}
