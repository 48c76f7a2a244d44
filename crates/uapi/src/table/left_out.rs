//! Names that the headers define and this crate leaves out on purpose.

/// By kind; all of it is of `iommufd.h`. A name that ends in `*` stands
/// for all that begin so; a structure stands for its fields.
const LEFT_OUT: &[(&str, &[&str])] = &[
    ("ordinals, compared in the requests", &["IOMMUFD_CMD_*"]),
    (
        "nested translation",
        &[
            "iommu_hwpt_vtd_s1*",
            "iommu_hwpt_arm_smmuv3",
            "iommu_hwpt_amd_guest",
            "iommu_hwpt_invalidate",
            "IOMMU_VTD_*",
            "IOMMU_HWPT_DATA_*",
            "IOMMU_HWPT_INVALIDATE*",
            "IOMMU_VIOMMU_INVALIDATE_*",
            "iommu_hw_info_*",
            "IOMMU_HW_INFO_VTD_*",
            "IOMMU_HW_INFO_ARM_SMMUV3_*",
            "IOMMU_HW_INFO_TYPE_DEFAULT",
        ],
    ),
    (
        "virtual IOMMUs",
        &[
            "iommu_viommu_*",
            "IOMMU_VIOMMU_*",
            "iommu_vdevice_*",
            "IOMMU_VDEVICE_*",
            "iommu_veventq_*",
            "iommufd_vevent_header",
            "iommu_vevent_*",
            "IOMMU_VEVENTQ_*",
            "iommu_hw_queue_*",
            "IOMMU_HW_QUEUE_*",
        ],
    ),
    (
        "page faults",
        &[
            "iommu_hwpt_pgfault",
            "iommu_hwpt_page_response",
            "iommu_fault_alloc",
            "IOMMU_PGFAULT_*",
            "IOMMUFD_PAGE_RESP_*",
            "IOMMU_FAULT_QUEUE_ALLOC",
        ],
    ),
    ("no IOMMU", &["iommu_ioas_noiommu_get_pa", "IOMMU_IOAS_NOIOMMU_GET_PA"]),
];

/// Returns the reason why this crate leaves out a header's name on purpose (the group the name belongs to),
/// or `None`. For a field, `structure.field`, its structure decides.
pub fn left_out(name: &str) -> Option<&'static str> {
    let item = name.split('.').next().unwrap_or(name);
    let is_meant = |left_out: &&str| match left_out.strip_suffix('*') {
        Some(prefix) => item.starts_with(prefix),
        None => item == *left_out,
    };
    LEFT_OUT.iter().find(|(_, names)| names.iter().any(is_meant)).map(|(kind, _)| *kind)
}
