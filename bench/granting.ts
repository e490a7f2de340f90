/**
 * `node --import` of this file runs a broker whose verdicts about messages are those of `granting-authorization`, for
 * the bench alone: nothing else of it is different, and no option of the product leads there.
 */
import { registerHooks } from 'node:module'
import { pathToFileURL } from 'node:url'
import { programBeside } from './processes.ts'

const JUDGE = /\/broker\/judge\/authorization\.[jt]s$/
const STAND_IN = pathToFileURL(programBeside(import.meta.url, 'granting-authorization')).href

registerHooks({
  resolve(specifier, context, next) {
    const found = next(specifier, context)
    const isReplaced = JUDGE.test(found.url) && context.parentURL !== STAND_IN
    return isReplaced ? { ...found, url: STAND_IN } : found
  },
})
