//! Which devices there are, and what reaches what.

use crate::rig::{PORT, Rig, pairs};
use engine::fabric::verbs::{OpenError, VerbsFabric, list};
use engine::fabric::{DeviceConfig, Fabric as _, GidChoice, Reach};
use engine::id::PortId;

#[test]
fn devices_are_listed_with_what_they_can_do() {
    for [config, _] in pairs() {
        let name = &config.devices[0];
        let all = list().unwrap();
        let info = all.into_iter().find(|(n, _)| n == name).unwrap().1.unwrap();
        assert_eq!(&info.name, name);
        assert!(
            info.node_guid != 0 && info.limits.max_qp_wr > 64 && info.limits.max_inline >= 64,
            "{info:?}"
        );
        assert!(!info.dmabuf && !info.on_demand_paging, "Soft-RoCE has neither: {info:?}");
        let port = &info.ports[0];
        assert!(port.bits_per_s > 0 && (256..=4096).contains(&port.mtu), "{port:?}");
        assert!(port.pkeys.contains(&0xffff), "{port:?}");
        let (gid, why) = port.choose(GidChoice::Auto).unwrap();
        assert_eq!(gid.gid[10..13], [0xff, 0xff, 10], "{why}");
        assert!(!gid.netdev.is_empty(), "{gid:?}");
        let fabric = VerbsFabric::open(&config).unwrap();
        assert_eq!(fabric.ports().len(), 1);
        let own = &fabric.ports()[0];
        assert_eq!((own.name.as_str(), own.gids[0], own.up), (format!("{name}/1").as_str(), gid.gid, true));
        assert_eq!(fabric.limits(), &info.limits);
    }
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    for [config, _] in pairs() {
        let open = |config: &DeviceConfig| VerbsFabric::open(config).map(|_| ()).unwrap_err();
        let name = config.devices[0].clone();
        let missing = open(&DeviceConfig { devices: vec!["mlx5_77".into()], ..config.clone() });
        assert!(missing.to_string().contains("mlx5_77") && missing.to_string().contains(&name), "{missing}");
        let twice = vec![name.clone(), format!("{name}/1")];
        assert!(matches!(open(&DeviceConfig { devices: twice, ..config.clone() }), OpenError::Twice(_)));
        let gid = open(&DeviceConfig { gid: GidChoice::Index(200), ..config.clone() });
        assert!(matches!(gid, OpenError::Gid { .. }), "{gid}");
        let pkey = open(&DeviceConfig { pkey_index: 60_000, ..config.clone() });
        assert!(matches!(pkey, OpenError::Pkey { index: 60_000, .. }), "{pkey}");
        let reach = vec![Reach { local: "mlx5_77".into(), prefix: [0; 16], bits: 0 }];
        assert!(matches!(open(&DeviceConfig { reach, ..config.clone() }), OpenError::Reach(_)));
        assert!(matches!(
            open(&DeviceConfig { service_level: 9, ..config.clone() }),
            OpenError::ServiceLevel(9)
        ));
        let all = VerbsFabric::open(&DeviceConfig { devices: vec![], ..config.clone() }).unwrap();
        assert!(all.ports().iter().any(|p| p.name == format!("{name}/1")));
        assert!(all.ports().windows(2).all(|w| w[0].name < w[1].name));
    }
}

#[test]
fn the_reach_table_says_which_ports_see_each_other() {
    for pair in pairs() {
        let mut rig = Rig::new(&pair);
        let qp = rig.qps[1];
        let peer = rig.f(1).endpoint(qp).unwrap();
        let line = |prefix, bits| Reach { local: pair[0].devices[0].clone(), prefix, bits };
        let mut wrong = peer.gid;
        wrong[14] ^= 1;
        for (reach, reaches) in [
            (vec![], true),
            (vec![line(peer.gid, 128)], true),
            (vec![line(wrong, 112)], true),
            (vec![line(wrong, 120)], false),
        ] {
            let fabric = VerbsFabric::open(&DeviceConfig { reach, ..pair[0].clone() }).unwrap();
            assert_eq!(fabric.reaches(PORT, &peer), reaches);
            assert!(!fabric.reaches(PortId(1), &peer));
        }
    }
}
