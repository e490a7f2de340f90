import type { Sqlite } from '#shared/sqlite'

/** Which state file of a replica serves. */
export interface Generations {
  /** Of the state that serves. */
  readonly generation: number
  /** The highest number ever given to a snapshot; numbers are not used twice. */
  readonly newest: number
}

export function readGenerations(db: Sqlite): Generations {
  // The row is made with the schema and never deleted.
  return db.prepare<[], Generations>('SELECT generation, newest FROM replica').get() as Generations
}

export function prepareGenerations(db: Sqlite): (generations: Generations) => void {
  const save = db.prepare('UPDATE replica SET generation = ?, newest = ?')
  return ({ generation, newest }) => void save.run(generation, newest)
}
