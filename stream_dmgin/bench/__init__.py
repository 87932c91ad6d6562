"""The product's own measurements: `stream-dmgin bench ...`. One file each, with the rival in the same run where there is one."""
