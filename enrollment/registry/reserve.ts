import { closeSync, fsyncSync, ftruncateSync, openSync, statSync, truncateSync, writeSync } from 'node:fs'

/** A WAL grows to 4 MiB before it is used anew: as much again is left for what holds add to the database, octets. */
export const RESERVE_OCTETS = 8 * 1024 * 1024

/** Space that is given up for what cannot wait. */
export interface Reserve {
  readonly isWhole: boolean
  /** Takes the space, when it has been given up. @throws what the disk says */
  keep(): void
  /** Gives the space to the files beside it. @throws what the disk says */
  release(): void
}

/** A file of that size on each disk that a commit writes to: `paths` lie beside the database and the journal. */
export function openReserve(paths: readonly string[]): Reserve {
  let isWhole = paths.every(isThere)
  return {
    get isWhole() {
      return isWhole
    },
    keep() {
      if (isWhole) return
      for (const path of paths) fill(path)
      isWhole = true
    },
    release() {
      isWhole = false
      for (const path of paths) if (isThere(path)) truncateSync(path, 0)
    },
  }
}

function isThere(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false })?.size === RESERVE_OCTETS
}

/** All or nothing: half a reserve would only be missing from what is left. */
function fill(path: string): void {
  const file = openSync(path, 'a', 0o600)
  try {
    ftruncateSync(file, 0)
    const octets = Buffer.alloc(RESERVE_OCTETS, 'muster ')
    for (let done = 0; done < octets.length; ) done += writeSync(file, octets, done)
    fsyncSync(file)
  } catch (error) {
    ftruncateSync(file, 0)
    throw error
  } finally {
    closeSync(file)
  }
}
