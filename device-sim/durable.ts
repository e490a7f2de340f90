/**
 * Files that survive a power cut, without stopping the process: thousands of devices write theirs side by side,
 * and a disk gathers what is synced at the same time.
 */
import { open, rename } from 'node:fs/promises'
import { dirname } from 'node:path'

/** Replaces a file: old or new content, whole, and durable when the promise resolves. */
export async function writeDurably(path: string, content: string, mode = 0o644): Promise<void> {
  const beside = `${path}.new`
  const file = await open(beside, 'w', mode)
  try {
    await file.writeFile(content)
    await file.sync()
  } finally {
    await file.close()
  }
  await renameDurably(beside, path)
}

/** Within one directory. */
export async function renameDurably(from: string, to: string): Promise<void> {
  await rename(from, to)
  await syncEntries(dirname(to))
}

/** Makes what was created, renamed and removed in a directory durable. */
export async function syncEntries(directory: string): Promise<void> {
  const handle = await open(directory, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}
