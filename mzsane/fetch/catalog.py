"""The published model zoos, as data: where they are on Zenodo and what is known about them.

What is not known is None and never guessed: sizes and checksums are asked of the server, or given by the user.
"""

from dataclasses import dataclass

from mzsane.errors import ConfigError

_CC_BY = "CC-BY 4.0"
_ZOOS = "Schürholt et al. 2022, Model Zoos: A Dataset of Diverse Populations of Neural Network Models, arXiv 2209.14764"
_TWINS = "Honegger, Schürholt, Borth 2023, Sparsified Model Zoo Twins, arXiv 2304.13718"


@dataclass(frozen=True)
class CatalogEntry:
    """A published zoo.

    Attributes:
        name: what users call it.
        record: number of its Zenodo record; where no file is known, that of all versions of the record.
        dataset: the image dataset of its models.
        citation: the work to cite.
        file: name of the file in the record; None when only the record is known.
        architecture: of its models, as far as it is known.
        epochs: first and last epoch whose checkpoints are in the file.
        size: of the file, bytes.
        md5: of the file.
        licence: of the data; None: the record's page says.
    """

    name: str
    record: int
    dataset: str
    citation: str
    file: str | None = None
    architecture: str | None = None
    epochs: tuple[int, int] | None = None
    size: int | None = None
    md5: str | None = None
    licence: str | None = None

    @property
    def page(self) -> str:
        """Address of the record's page, where its files are listed."""
        return f"https://zenodo.org/records/{self.record}"

    @property
    def url(self) -> str:
        """Address of the file.

        Raises:
            ConfigError: only the record is known.
        """
        if self.file is None:
            raise ConfigError(
                f"the catalogue knows the record of {self.name!r} but none of its files: open {self.page} and give the "
                "link of the file you need as source"
            )
        return f"{self.page}/files/{self.file}"


CATALOG = (
    CatalogEntry(
        name="cifar10-cnn-large-seed",
        record=6620869,
        dataset="CIFAR-10",
        citation=_ZOOS,
        file="cifar_large_seed.zip",
        architecture="CNN-l, seeds only",
        licence=_CC_BY,
    ),
    CatalogEntry(
        name="cifar10-cnn-sample",
        record=13144018,
        dataset="CIFAR-10",
        citation=_ZOOS,
        file="cifar10_cnn_sample_ep21-25.zip",
        architecture="CNN",
        epochs=(21, 25),
    ),
    CatalogEntry(
        name="cifar100-resnet18-epoch60",
        record=6977382,
        dataset="CIFAR-100",
        citation=_ZOOS,
        file="cifar100_resnet18_epoch60.zip",
        architecture="ResNet-18",
        epochs=(60, 60),
        licence=_CC_BY,
    ),
    CatalogEntry(name="mnist", record=6632086, dataset="MNIST", citation=_ZOOS, licence=_CC_BY),
    CatalogEntry(name="fashion-mnist", record=6632104, dataset="Fashion-MNIST", citation=_ZOOS, licence=_CC_BY),
    CatalogEntry(name="svhn", record=6632120, dataset="SVHN", citation=_ZOOS, licence=_CC_BY),
    CatalogEntry(name="usps", record=6633626, dataset="USPS", citation=_ZOOS, licence=_CC_BY),
    CatalogEntry(name="cifar10", record=6620868, dataset="CIFAR-10", citation=_ZOOS, licence=_CC_BY),
    CatalogEntry(name="stl10", record=6631783, dataset="STL-10", citation=_ZOOS, licence=_CC_BY),
    CatalogEntry(name="eurosat", record=8141666, dataset="EuroSAT", citation=_ZOOS, licence=_CC_BY),
    CatalogEntry(name="mnist-sparsified", record=7023335, dataset="MNIST", citation=_TWINS),
    CatalogEntry(name="svhn-sparsified", record=7027566, dataset="SVHN", citation=_TWINS),
)


def find_entry(name: str) -> CatalogEntry:
    """Return the entry of a name.

    Raises:
        ConfigError: there is none; the text lists the names.
    """
    for entry in CATALOG:
        if entry.name == name:
            return entry
    names = ", ".join(entry.name for entry in CATALOG)
    raise ConfigError(f"{name!r} is neither an http(s) address nor a zoo of the catalogue: {names}")


def catalog_table() -> str:
    """Return the catalogue as text: a line a zoo, then the works to cite and how to download."""
    header = ("name", "dataset", "architecture", "epochs", "record", "file", "size", "licence", "cite")
    works = list(dict.fromkeys(entry.citation for entry in CATALOG))
    rows = [
        (
            entry.name,
            entry.dataset,
            entry.architecture or "see record",
            _show_epochs(entry.epochs),
            str(entry.record),
            entry.file or "see record",
            f"{entry.size / 1e6:,.0f} MB" if entry.size else "asked",
            entry.licence or "see record",
            f"[{works.index(entry.citation) + 1}]",
        )
        for entry in CATALOG
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
    cited = [f"[{number}] {work}" for number, work in enumerate(works, start=1)]
    notes = [
        "A record's page is https://zenodo.org/records/RECORD. Sizes that are not listed are asked of the server and",
        "said before a download starts. Where the file says `see record`, give the link of one of its files as source.",
    ]
    return "\n".join([*lines, "", *cited, "", *notes])


def _show_epochs(epochs: tuple[int, int] | None) -> str:
    if epochs is None:
        return "see record"
    first, last = epochs
    return str(first) if first == last else f"{first} to {last}"
