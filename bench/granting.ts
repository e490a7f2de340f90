/**
 * `node --import` of this file runs a broker whose verdicts about messages are those of `granting-authorization`, and
 * whose connections are those of `granting-decisions`, for the bench alone: nothing else of it is different, and no
 * option of the product leads there.
 */
import { registerHooks } from 'node:module'
import { pathToFileURL } from 'node:url'
import { programBeside } from './processes.ts'

const JUDGE = /\/broker\/judge\/(authorization|decisions)\.[jt]s$/

registerHooks({
  resolve(specifier, context, next) {
    const found = next(specifier, context)
    const [, name] = JUDGE.exec(found.url) ?? []
    if (name === undefined) return found
    const url = pathToFileURL(programBeside(import.meta.url, `granting-${name}`)).href
    return context.parentURL === url ? found : { ...found, url }
  },
})
