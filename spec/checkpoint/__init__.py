"""The neutral checkpoint format: whole and sharded, as tensors, trees and files."""
