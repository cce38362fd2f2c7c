"""Generated datasets on disk: filtered, written in three formats, and read back."""

from synthkd.data.written.soft_labelled import read_soft_labelled
from synthkd.data.written.stored import StoredDataset, read_stored
from synthkd.data.written.stored_images import StoredImages
from synthkd.data.written.writers import Layout, Records, write_records

__all__ = ["Layout", "Records", "StoredDataset", "StoredImages", "read_soft_labelled", "read_stored", "write_records"]
