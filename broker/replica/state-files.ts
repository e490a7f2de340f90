import { readdirSync, rmSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'

/** Of every database in WAL mode, besides itself. */
const COMPANIONS = ['', '-wal', '-shm', '-journal']

/** The state files beside one `broker.db`: `broker.db-state-7`. */
export interface StateFiles {
  path(generation: number): string
  remove(generation: number): void
  /** Removes every one but that which serves, and those that came with it. */
  removeOthers(serving: number): void
}

export function stateFiles(replica: string): StateFiles {
  const directory = dirname(replica)
  const prefix = `${basename(replica)}-state-`
  const path = (generation: number) => join(directory, `${prefix}${generation}`)
  const remove = (generation: number) => {
    for (const suffix of COMPANIONS) rmSync(path(generation) + suffix, { force: true })
  }
  return {
    path,
    remove,
    removeOthers(serving) {
      for (const name of readdirSync(directory)) {
        if (!name.startsWith(prefix)) continue
        const generation = /^\d+/.exec(name.slice(prefix.length))?.[0]
        if (generation !== undefined && Number(generation) !== serving) remove(Number(generation))
      }
    },
  }
}
